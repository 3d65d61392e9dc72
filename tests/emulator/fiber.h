// A stack that code runs on until it gives way. Known to the address and thread sanitizers.
#pragma once

#include <boost/context/detail/fcontext.hpp>
#include <boost/context/protected_fixedsize_stack.hpp>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
#endif

namespace emulator {

// A point of execution: of the host's thread itself, or of a Fiber.
class Context {
 public:
  // Goes on where `to` stopped; returns when another goes on here.
  void go(Context& to) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(&fake_stack_, to.bottom_, to.size_);
#endif
#ifdef __SANITIZE_THREAD__
    if (!tsan_) tsan_ = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(to.tsan_, 0);
#endif
    to_ = &to;
    arrived(boost::context::detail::jump_fcontext(to.context_, this));
  }

 protected:
  // Notes where the one who came here has stopped.
  void arrived(boost::context::detail::transfer_t t) {
    Context& from = *static_cast<Context*>(t.data);
    from.context_ = t.fctx;
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(fake_stack_, &from.bottom_, &from.size_);
#endif
  }

  static Context* going_to(boost::context::detail::transfer_t t) { return static_cast<Context*>(t.data)->to_; }

  boost::context::detail::fcontext_t context_ = nullptr;
  Context* to_ = nullptr;  // where it went last
  const void* bottom_ = nullptr;
  size_t size_ = 0;
  void* fake_stack_ = nullptr;
  void* tsan_ = nullptr;
};

// Runs main(), which never returns, from the first go() on. Destroyed anywhere: what is on its stack is forgotten.
class Fiber : public Context {
 public:
  explicit Fiber(void (*main)(Fiber&)) : stack_(Stacks(bytes).allocate()), main_(main) {
    context_ = boost::context::detail::make_fcontext(stack_.sp, stack_.size, [](boost::context::detail::transfer_t t) {
      Fiber& self = static_cast<Fiber&>(*going_to(t));
      self.arrived(t);
      self.main_(self);
    });
    size_ = stack_.size, bottom_ = static_cast<char*>(stack_.sp) - size_;
#ifdef __SANITIZE_THREAD__
    tsan_ = __tsan_create_fiber(0);
#endif
  }
  Fiber(Fiber&&) = delete;
  ~Fiber() {
#ifdef __SANITIZE_ADDRESS__
    ASAN_UNPOISON_MEMORY_REGION(bottom_, size_);
#endif
#ifdef __SANITIZE_THREAD__
    __tsan_destroy_fiber(tsan_);
#endif
    Stacks(bytes).deallocate(stack_);
  }

 private:
  using Stacks = boost::context::protected_fixedsize_stack;
  static constexpr size_t bytes = 128 << 10;

  boost::context::stack_context stack_;
  void (*main_)(Fiber&);
};

}  // namespace emulator
