//! Interrupts by real-time signals.

use core::ptr::null_mut;
use std::sync::Once;

use crate::platform::interrupted;

/// The signal of all machines.
fn signal() -> libc::c_int {
    libc::SIGRTMIN() + 2
}

/// Sets the handler, once for the process.
pub(crate) fn install() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // SAFETY: all zero is a value of it.
        let mut action: libc::sigaction = unsafe { core::mem::zeroed() };
        action.sa_sigaction = on_signal as extern "C" fn(libc::c_int) as libc::sighandler_t;
        action.sa_flags = libc::SA_RESTART;
        // SAFETY: the handler is safe to run between any two instructions: see `on_signal`.
        let failed = unsafe { libc::sigaction(signal(), &raw const action, null_mut()) };
        assert_eq!(failed, 0, "a real-time signal has a handler");
    });
}

/// The calling thread, as others interrupt it.
pub(crate) fn this_thread() -> usize {
    // SAFETY: it has no conditions.
    unsafe { libc::pthread_self() as usize }
}

/// Interrupts a thread.
///
/// # Safety
/// The thread has not ended.
pub(crate) unsafe fn interrupt(thread: usize) {
    // SAFETY: the caller's promise. An overflowing queue leaves one signal of this kind pending at least, and one is enough.
    unsafe { libc::pthread_kill(thread as libc::pthread_t, signal()) };
}

/// What is done here allocates nothing, takes no lock and calls nothing of the C library but `errno`'s place.
extern "C" fn on_signal(_: libc::c_int) {
    // SAFETY: the calling thread's own.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: the same.
    let before = unsafe { *errno };
    interrupted();
    // SAFETY: the same.
    unsafe { *errno = before };
}
