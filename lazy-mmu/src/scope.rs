//! Sections and pauses as guards.
//!
//! ```compile_fail
//! # use lazytlb_lazy_mmu::{LazyMmuArch, MaySleep};
//! # fn schedule<A: LazyMmuArch>(_: &mut MaySleep<'_, A>) {}
//! # fn example<A: LazyMmuArch>(mut task: MaySleep<'_, A>) {
//! let section = task.enable();
//! schedule(&mut task); // sleeps inside of the section
//! drop(section);
//! # }
//! ```
//!
//! What does not compile, once a [`MaySleep`] or an [`Anywhere`] is there: to end a section twice, to cross a pause with a section, to sleep in one
//! (if what sleeps takes a `&mut` [`MaySleep`]), to send one to another task. What these two are made with is a promise, and `unsafe`:
//! a second one for the same task, used while guards of the first are there, could cross them.
//!
//! What is left is reported when the guard around it ends, or the [`MaySleep`] or [`Anywhere`] that it began by. A guard that was forgotten
//! (`core::mem::forget`) is ended then. Raw calls inside that do not
//! pair, and an end inside an interrupt while the other is outside, are not mended: nobody knows which of the calls was wrong.
//! In `async` code nothing keeps a section from being held over an `.await`; its future is not `Send` then, which is all that can be said.

use core::fmt;
use core::marker::PhantomData;

use lazytlb_core::memory::LocalWord;

use crate::arch::{LazyMmuArch, Warning};
use crate::state::{LazyMmuState, NativeCounter};

/// The current task's state and its architecture: where all calls are made.
struct Calls<'a, A: ?Sized, W> {
    state: &'a LazyMmuState<W>,
    arch: &'a A,
    /// Not `Send`: it is about the current task.
    _current: PhantomData<*mut ()>,
}

impl<A: ?Sized, W> Clone for Calls<'_, A, W> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<A: ?Sized, W> Copy for Calls<'_, A, W> {}

impl<A: ?Sized, W: LocalWord<u8>> fmt::Debug for Calls<'_, A, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "enabled {}, paused {}", self.state.enable_count(), self.state.pause_count())
    }
}

impl<'a, A: LazyMmuArch + ?Sized, W: LocalWord<u8>> Calls<'a, A, W> {
    fn new(state: &'a LazyMmuState<W>, arch: &'a A) -> Self {
        Calls { state, arch, _current: PhantomData }
    }

    fn warn(self, warning: Warning) {
        if self.arch.debug_vm() {
            self.arch.warn(warning);
        }
    }

    /// Ends what was begun inside and not ended, so that the counters are these. Says whether they were not below.
    fn end_forgotten(self, enable_count: u8, pause_count: u8) -> bool {
        let (enabled, paused) = (self.state.enable_count(), self.state.pause_count());
        if enabled > enable_count || paused > pause_count {
            self.warn(Warning::Forgotten);
        }
        for _ in pause_count..paused {
            self.state.lazy_mmu_mode_resume(self.arch);
        }
        for _ in enable_count..enabled {
            self.state.lazy_mmu_mode_disable(self.arch);
        }
        let balanced = enabled >= enable_count && paused >= pause_count;
        if !balanced {
            self.warn(Warning::Unbalanced);
        }
        balanced
    }
}

/// What a section or a pause found when it began, and left.
#[derive(Clone, Copy, Debug)]
struct Begun {
    /// The counters just behind the call.
    enable_count: u8,
    pause_count: u8,
    in_interrupt: bool,
    /// Whether the call counted.
    counted: bool,
}

impl Begun {
    /// Makes the call. It counts if it has changed a counter.
    fn by<A: LazyMmuArch + ?Sized, W: LocalWord<u8>>(calls: Calls<'_, A, W>, call: impl FnOnce()) -> Begun {
        let counts = || (calls.state.enable_count(), calls.state.pause_count());
        let before = counts();
        call();
        let (enable_count, pause_count) = counts();
        let counted = before != (enable_count, pause_count);
        Begun { enable_count, pause_count, in_interrupt: calls.arch.in_interrupt(), counted }
    }

    /// Whether the call that ends it is to be made.
    fn is_to_end<A: LazyMmuArch + ?Sized, W: LocalWord<u8>>(self, calls: Calls<'_, A, W>) -> bool {
        if calls.arch.in_interrupt() != self.in_interrupt {
            calls.warn(Warning::ContextChanged);
            return false;
        }
        // In an interrupt nothing counts, and the counters are the interrupted task's.
        self.in_interrupt || calls.end_forgotten(self.enable_count, self.pause_count) && self.counted
    }
}

macro_rules! begins {
    ($(#[$doc:meta])* $scope:ident) => {
        impl<'a, A: LazyMmuArch + ?Sized, W: LocalWord<u8>> $scope<'a, A, W> {
            $(#[$doc])*
            pub fn enable(&mut self) -> Section<'_, A, W> {
                let calls = self.calls;
                Section { calls, begun: Begun::by(calls, || calls.state.lazy_mmu_mode_enable(calls.arch)) }
            }

            /// As [`enable`](Self::enable), with a hint
            /// ([`lazy_mmu_mode_enable_with_ptes`](LazyMmuState::lazy_mmu_mode_enable_with_ptes)).
            pub fn enable_with_ptes(&mut self, ptes: A::Ptes) -> Section<'_, A, W> {
                let calls = self.calls;
                let call = || calls.state.lazy_mmu_mode_enable_with_ptes(calls.arch, ptes);
                Section { calls, begun: Begun::by(calls, call) }
            }

            /// Begins a pause ([`lazy_mmu_mode_pause`](LazyMmuState::lazy_mmu_mode_pause)).
            pub fn pause(&mut self) -> Pause<'_, A, W> {
                let calls = self.calls;
                Pause { calls, begun: Begun::by(calls, || calls.state.lazy_mmu_mode_pause(calls.arch)) }
            }
        }

        impl<A: LazyMmuArch + ?Sized, W: LocalWord<u8>> fmt::Debug for $scope<'_, A, W> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_tuple(stringify!($scope)).field(&self.calls).finish()
            }
        }
    };
}

/// Proof that the current task may sleep as far as lazy MMU mode goes: what sleeps takes a `&mut` of it.
pub struct MaySleep<'a, A: LazyMmuArch + ?Sized, W: LocalWord<u8> = NativeCounter> {
    calls: Calls<'a, A, W>,
    /// The counters where nothing is open that may not be.
    enable_count: u8,
    pause_count: u8,
}

begins! {
    /// Begins a section ([`lazy_mmu_mode_enable`](LazyMmuState::lazy_mmu_mode_enable)). Until it ends the task does not sleep.
    MaySleep
}

impl<'a, A: LazyMmuArch + ?Sized, W: LocalWord<u8>> MaySleep<'a, A, W> {
    /// States that the current task is in no section: at the entry of a system call, in a kernel thread's function.
    ///
    /// # Safety
    /// `state` is the current task's, no section and no pause is open, and the caller may sleep. As long as this value is there, there is no
    /// other such value for this task, and an [`Anywhere`] only as its own promise lets it be.
    pub unsafe fn assume(state: &'a LazyMmuState<W>, arch: &'a A) -> Self {
        MaySleep { calls: Calls::new(state, arch), enable_count: 0, pause_count: 0 }
    }

    /// What sleeps calls this first (Linux `might_sleep`): a section that was forgotten is reported, and ended.
    pub fn might_sleep(&mut self) {
        self.calls.end_forgotten(self.enable_count, self.pause_count);
    }
}

impl<A: LazyMmuArch + ?Sized, W: LocalWord<u8>> Drop for MaySleep<'_, A, W> {
    fn drop(&mut self) {
        self.might_sleep();
    }
}

/// Code that knows nothing of its callers: a library function that may be called in a section, an interrupt handler, a callback of
/// C. It may begin sections, and does not sleep.
pub struct Anywhere<'a, A: LazyMmuArch + ?Sized, W: LocalWord<u8> = NativeCounter> {
    calls: Calls<'a, A, W>,
    /// The counters that it has found.
    enable_count: u8,
    pause_count: u8,
}

begins! {
    /// Begins a section ([`lazy_mmu_mode_enable`](LazyMmuState::lazy_mmu_mode_enable)).
    Anywhere
}

impl<'a, A: LazyMmuArch + ?Sized, W: LocalWord<u8>> Anywhere<'a, A, W> {
    /// States that this is the innermost code of the current task that has to do with the mode. Context: any.
    ///
    /// # Safety
    /// `state` is the current task's. As long as this value and what begins by it are there, nothing else of the task's is used or dropped: no
    /// other guard, no [`MaySleep`], no `Anywhere` that was there before. One that comes and goes meanwhile is no harm: so a function may make
    /// one for itself that is gone when it returns, and an interrupt handler likewise.
    pub unsafe fn assume(state: &'a LazyMmuState<W>, arch: &'a A) -> Self {
        let (enable_count, pause_count) = (state.enable_count(), state.pause_count());
        Anywhere { calls: Calls::new(state, arch), enable_count, pause_count }
    }
}

impl<A: LazyMmuArch + ?Sized, W: LocalWord<u8>> Drop for Anywhere<'_, A, W> {
    fn drop(&mut self) {
        self.calls.end_forgotten(self.enable_count, self.pause_count);
    }
}

/// A section, until dropped ([`lazy_mmu_mode_disable`](LazyMmuState::lazy_mmu_mode_disable)).
#[must_use = "the section ends where this is dropped"]
pub struct Section<'a, A: LazyMmuArch + ?Sized, W: LocalWord<u8> = NativeCounter> {
    calls: Calls<'a, A, W>,
    begun: Begun,
}

begins! {
    /// Begins a section inside of this one, which ends first.
    Section
}

impl<A: LazyMmuArch + ?Sized, W: LocalWord<u8>> Drop for Section<'_, A, W> {
    fn drop(&mut self) {
        if self.begun.is_to_end(self.calls) {
            self.calls.state.lazy_mmu_mode_disable(self.calls.arch);
        }
    }
}

/// A pause, until dropped ([`lazy_mmu_mode_resume`](LazyMmuState::lazy_mmu_mode_resume)).
#[must_use = "the pause ends where this is dropped"]
pub struct Pause<'a, A: LazyMmuArch + ?Sized, W: LocalWord<u8> = NativeCounter> {
    calls: Calls<'a, A, W>,
    begun: Begun,
}

begins! {
    /// Begins a section inside of this pause, which does nothing and ends first.
    Pause
}

impl<A: LazyMmuArch + ?Sized, W: LocalWord<u8>> Pause<'_, A, W> {
    /// In a pause nothing is deferred, so the task may sleep as far as the mode goes.
    ///
    /// # Safety
    /// The caller may sleep: it holds no lock that forbids it, and is in no interrupt.
    pub unsafe fn may_sleep(&mut self) -> MaySleep<'_, A, W> {
        let Begun { enable_count, pause_count, .. } = self.begun;
        MaySleep { calls: self.calls, enable_count, pause_count }
    }
}

impl<A: LazyMmuArch + ?Sized, W: LocalWord<u8>> Drop for Pause<'_, A, W> {
    fn drop(&mut self) {
        if self.begun.is_to_end(self.calls) {
            self.calls.state.lazy_mmu_mode_resume(self.calls.arch);
        }
    }
}
