// Error kinds of Tenon. Every failure that a caller can cause is one of these; each message says
// which op or primitive, where (module path), what was given and what was needed.
#pragma once

#include <cstddef>
#include <stdexcept>
#include <string>

namespace tenon {

/// Base of everything Tenon throws. `what()` is a full sentence fit for a user.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Sizes, ranks or axes that do not fit together.
class ShapeError : public Error {
 public:
  using Error::Error;
};

/// A dtype that an op does not take, or operands of different dtypes.
class DTypeError : public Error {
 public:
  using Error::Error;
};

/// A device that does not exist, or operands on different devices.
class DeviceError : public Error {
 public:
  using Error::Error;
};

/// An argument that has the right type but not a permitted value.
class ValueError : public Error {
 public:
  using Error::Error;
};

/// A module that is built or addressed wrongly, or a state dict that does not fit it.
class ModuleError : public Error {
 public:
  using Error::Error;
};

/// A model that cannot be recorded as a Graph, or a recorded size that a run violates.
class TraceError : public Error {
 public:
  using Error::Error;
};

/// A Graph that breaks one of the verifier's numbered invariants.
class GraphError : public Error {
 public:
  using Error::Error;
};

/// A schedule primitive that was refused; the Graph is as it was before.
class ScheduleError : public Error {
 public:
  using Error::Error;
};

/// A scheduled Program whose results differ from the unscheduled model's.
class VerificationError : public ScheduleError {
 public:
  using ScheduleError::ScheduleError;
};

/// A checkpoint that cannot be read or written; names the file, the tensor and the reason.
class CheckpointError : public Error {
 public:
  using Error::Error;
};

/// A Program whose parameters were moved to another storage, dtype or device after it was built, or
/// for which what the trace had of the host is no longer so: hooks, modes of modules, grad mode.
class StaleProgram : public Error {
 public:
  using Error::Error;
};

/// Something that one thread at a time may change, in use by two at once; the later one has changed
/// nothing.
class ConcurrencyError : public Error {
 public:
  using Error::Error;
};

/// An allocation that did not fit. Sizes in bytes; the process can go on.
class OutOfMemory : public Error {
 public:
  OutOfMemory(const std::string& message, std::size_t requested_bytes, std::size_t free_now,
              std::size_t live_now)
      : Error(message), requested(requested_bytes), free_bytes(free_now), live_bytes(live_now) {}
  std::size_t requested;
  std::size_t free_bytes;
  std::size_t live_bytes;
};

/// The device reported an error after which its context cannot be used; only a new process helps.
class DeviceLost : public Error {
 public:
  using Error::Error;
};

/// A bug in Tenon itself, never the caller's mistake.
class InternalError : public Error {
 public:
  using Error::Error;
};

}  // namespace tenon
