// Everything of tenon::nn: modules, layers, containers, optimizers and checkpoints.
#pragma once

#include "nn/activations.h"
#include "nn/adam.h"
#include "nn/checkpoint.h"
#include "nn/clip_grad.h"
#include "nn/containers.h"
#include "nn/init.h"
#include "nn/layers.h"
#include "nn/losses.h"
#include "nn/lr_schedule.h"
#include "nn/module.h"
#include "nn/optimizer.h"
#include "nn/sgd.h"
#include "nn/state_dict.h"
