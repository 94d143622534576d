// Everything of tenon::nn: modules, layers, containers and checkpoints.
#pragma once

#include "nn/activations.h"
#include "nn/checkpoint.h"
#include "nn/containers.h"
#include "nn/layers.h"
#include "nn/module.h"
#include "nn/state_dict.h"
