// A flag on what one thread at a time may change. It costs an atomic exchange, and turns what would
// be a data race into an error where two threads meet inside.
//
//   const ExclusiveUse::Scope use(in_use_, "[step] the optimizer");
#pragma once

#include <atomic>
#include <string_view>
#include <utility>

namespace tenon {

class ExclusiveUse {
 public:
  ExclusiveUse() = default;
  // What is moved or copied is a thing of its own, in nobody's use.
  ExclusiveUse(const ExclusiveUse&) noexcept {}
  ExclusiveUse& operator=(const ExclusiveUse&) noexcept { return *this; }

  /// ConcurrencyError while another thread's Scope lives. `what` begins the message.
  void require_free(std::string_view what) const {
    const void* const user = user_.load(std::memory_order_acquire);
    if (user != nullptr && user != this_thread()) fail_in_use(what);
  }

  /// Uses it for its lifetime; ConcurrencyError while another thread's Scope lives. The same thread
  /// may open one inside of another.
  class Scope {
   public:
    Scope(ExclusiveUse& flag, std::string_view what) : flag_(&flag) {
      const void* user = nullptr;
      if (flag.user_.compare_exchange_strong(user, this_thread())) return;
      if (user != this_thread()) fail_in_use(what);
      flag_ = nullptr;  // the outer one ends the use
    }
    Scope(Scope&& other) noexcept : flag_(std::exchange(other.flag_, nullptr)) {}
    Scope& operator=(Scope&&) = delete;
    ~Scope() {
      if (flag_ != nullptr) flag_->user_.store(nullptr, std::memory_order_release);
    }

   private:
    ExclusiveUse* flag_;
  };

 private:
  /// An address that no other living thread has.
  static const void* this_thread();
  [[noreturn]] static void fail_in_use(std::string_view what);
  std::atomic<const void*> user_{nullptr};
};

}  // namespace tenon
