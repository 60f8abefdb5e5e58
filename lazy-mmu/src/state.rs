//! The merged generation: two counters in the task.
//!
//! Source: the series of 15 December 2025 (v6, 20251215150323.2218608), merged for Linux 7.0: the calls 0a096ab7a3a6, the
//! interrupt bail-out 9273dfaeaca8, nesting 5ab246749569; `task_...` of the Xen series of 26 May 2026
//! (20260526150514.129330); `..._with_ptes` of the s390 series (v6 of 15 July 2026, cover.1784121418).

use core::sync::atomic::AtomicU8;

use lazytlb_core::memory::LocalWord;
use lazytlb_core::native::Local;

use crate::arch::{LazyMmuArch, Warning};

/// A counter of the machine this code runs on.
pub type NativeCounter = Local<AtomicU8>;

/// Where a section begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Begun {
    /// Where the mode is off whatever is called: in an interrupt, or while paused.
    Ignored,
    /// Outside of any other.
    Outermost,
    /// Inside of another.
    Nested,
}

/// The state of lazy MMU mode in each task: two bytes (Linux `struct lazy_mmu_state`).
///
/// | | enabled 0 times | enabled n times |
/// | --- | --- | --- |
/// | not paused | off | **on** |
/// | paused | off | off |
///
/// In an interrupt the mode is off and all calls do nothing, so an interrupt neither sees nor changes what the interrupted task
/// has set. While paused, enable and disable do nothing: library code that is called there may open and close sections as always.
///
/// | call | changes | callback |
/// | --- | --- | --- |
/// | enable | enabled + 1, unless paused | *enter*, if that made it 1 |
/// | disable | enabled - 1, unless paused | *leave*, if that made it 0, else *flush* |
/// | pause | paused + 1 | *leave*, if that made it 1 and something is enabled |
/// | resume | paused - 1 | *enter*, if that made it 0 and something is enabled |
///
/// What callers may rely on: once any disable returns, all that was changed before is in force, though the mode may go on; a
/// pause ends the mode at whatever depth, its resume brings it back at that depth.
///
/// What callers owe: pairs that nest properly, both calls of a pair inside the same interrupt or outside of any, and no sleep
/// while the mode is on. Linux notices little of it, and only with `CONFIG_DEBUG_VM`; [`scope`](crate::scope) has guards that
/// leave less to forget.
///
/// Each call is made on the state of the *current* task, from that task or an interrupt on top of it; so nothing here is atomic,
/// and the counters need no order. The methods named `task_...` are for whoever switches tasks, on a task that does not run.
///
/// Each takes the counter's change before the callback. See [`LazyMmuArch`] for what that asks of context switches.
#[derive(Debug)]
pub struct LazyMmuState<W = NativeCounter> {
    enable_count: W,
    pause_count: W,
}

const _: () = assert!(size_of::<LazyMmuState>() == 2);

impl<W: LocalWord<u8>> Default for LazyMmuState<W> {
    fn default() -> Self {
        LazyMmuState::from_parts(W::new(0), W::new(0))
    }
}

impl LazyMmuState {
    /// The state of a new task, for statics.
    pub const fn new() -> LazyMmuState {
        LazyMmuState::from_parts(Local::from_raw(AtomicU8::new(0)), Local::from_raw(AtomicU8::new(0)))
    }

    /// The state of a new task that waits for its first switch, where the hooks at a switch pause who goes and resume who comes
    /// ([`X5`](crate::backends::xen::X5)): paused once.
    pub const fn switched_out() -> LazyMmuState {
        LazyMmuState::from_parts(Local::from_raw(AtomicU8::new(0)), Local::from_raw(AtomicU8::new(1)))
    }
}

impl<W> LazyMmuState<W> {
    /// A state of these counters, which are zero in a new task.
    pub const fn from_parts(enable_count: W, pause_count: W) -> Self {
        LazyMmuState { enable_count, pause_count }
    }
}

impl<W: LocalWord<u8>> LazyMmuState<W> {
    /// How often the mode is enabled.
    #[inline]
    pub fn enable_count(&self) -> u8 {
        self.enable_count.get()
    }

    /// How often it is paused.
    #[inline]
    pub fn pause_count(&self) -> u8 {
        self.pause_count.get()
    }

    /// Begins a section (Linux `lazy_mmu_mode_enable`).
    ///
    /// Context: any. At 255 sections it warns ([`Warning::EnableOverflow`]) and wraps to none, with the architecture still in the
    /// mode, as Linux does.
    #[inline]
    pub fn lazy_mmu_mode_enable<A: LazyMmuArch + ?Sized>(&self, arch: &A) {
        self.enable(arch, A::arch_enter_lazy_mmu_mode);
    }

    /// As [`lazy_mmu_mode_enable`](Self::lazy_mmu_mode_enable), and tells the architecture which entries are about to change. A
    /// hint, which only the outermost section gives, and which a pause forgets.
    ///
    /// All entries belong to one mm and one table. Closed by [`lazy_mmu_mode_disable`](Self::lazy_mmu_mode_disable).
    #[inline]
    pub fn lazy_mmu_mode_enable_with_ptes<A: LazyMmuArch + ?Sized>(&self, arch: &A, ptes: A::Ptes) {
        self.enable(arch, |arch: &A| arch.arch_enter_lazy_mmu_mode_with_ptes(ptes));
    }

    /// Begins a section, the outermost by `enter`. Says where it begins.
    #[inline]
    pub(crate) fn enable<A: LazyMmuArch + ?Sized>(&self, arch: &A, enter: impl FnOnce(&A)) -> Begun {
        if arch.in_interrupt() || self.pause_count.get() > 0 {
            return Begun::Ignored;
        }
        let before = self.enable_count.get();
        if arch.debug_vm() && before == u8::MAX {
            arch.warn(Warning::EnableOverflow);
        }
        self.enable_count.set(before.wrapping_add(1));
        if before > 0 {
            return Begun::Nested;
        }
        enter(arch);
        Begun::Outermost
    }

    /// Ends a section (Linux `lazy_mmu_mode_disable`): all that was changed in it, and before it, is in force.
    ///
    /// Context: any. Without a section it warns ([`Warning::DisableUnderflow`]) and wraps to 255, which switches the mode on
    /// without the architecture having been told, as Linux does.
    #[inline]
    pub fn lazy_mmu_mode_disable<A: LazyMmuArch + ?Sized>(&self, arch: &A) {
        self.disable(arch, A::arch_flush_lazy_mmu_mode);
    }

    /// Ends a section, an inner one by `flush`.
    #[inline]
    pub(crate) fn disable<A: LazyMmuArch + ?Sized>(&self, arch: &A, flush: impl FnOnce(&A)) {
        if arch.in_interrupt() || self.pause_count.get() > 0 {
            return;
        }
        let before = self.enable_count.get();
        if arch.debug_vm() && before == 0 {
            arch.warn(Warning::DisableUnderflow);
        }
        self.enable_count.set(before.wrapping_sub(1));
        if before == 1 {
            arch.arch_leave_lazy_mmu_mode();
        } else {
            flush(arch);
        }
    }

    /// Switches the mode off, at whatever depth (Linux `lazy_mmu_mode_pause`): changes take effect at once from here on, and
    /// those made before are in force.
    ///
    /// Context: any, in a section or not; nests. At 255 pauses it warns ([`Warning::PauseOverflow`]) and wraps to none.
    #[inline]
    pub fn lazy_mmu_mode_pause<A: LazyMmuArch + ?Sized>(&self, arch: &A) {
        if !arch.in_interrupt() {
            self.task_lazy_mmu_mode_pause(arch);
        }
    }

    /// Ends a pause (Linux `lazy_mmu_mode_resume`): the mode is on again if it was.
    ///
    /// Context: any. Without a pause it warns ([`Warning::ResumeUnderflow`]) and wraps to 255, which makes the task ignore its
    /// sections from then on, with the architecture still in the mode if it was, as Linux does.
    #[inline]
    pub fn lazy_mmu_mode_resume<A: LazyMmuArch + ?Sized>(&self, arch: &A) {
        if !arch.in_interrupt() {
            self.task_lazy_mmu_mode_resume(arch);
        }
    }

    /// Whether changes of page tables may be deferred here and now: for the architecture's own functions
    /// (Linux `is_lazy_mmu_mode_active`). Context: any.
    #[inline]
    pub fn is_lazy_mmu_mode_active<A: LazyMmuArch + ?Sized>(&self, arch: &A) -> bool {
        !arch.in_interrupt() && self.task_lazy_mmu_mode_active()
    }

    /// Whether this task has the mode on (Linux `__task_lazy_mmu_mode_active`). What the architecture has done about it may be
    /// one callback behind. Context: of the task, or while it does not run.
    #[inline]
    pub fn task_lazy_mmu_mode_active(&self) -> bool {
        self.enable_count.get() > 0 && self.pause_count.get() == 0
    }

    /// [`lazy_mmu_mode_pause`](Self::lazy_mmu_mode_pause) for whoever switches away from this task
    /// (Linux `__task_lazy_mmu_mode_pause`).
    #[inline]
    pub fn task_lazy_mmu_mode_pause<A: LazyMmuArch + ?Sized>(&self, arch: &A) {
        let before = self.pause_count.get();
        if arch.debug_vm() && before == u8::MAX {
            arch.warn(Warning::PauseOverflow);
        }
        self.pause_count.set(before.wrapping_add(1));
        if before == 0 && self.enable_count.get() > 0 {
            arch.arch_leave_lazy_mmu_mode();
        }
    }

    /// [`lazy_mmu_mode_resume`](Self::lazy_mmu_mode_resume) for whoever switches to this task
    /// (Linux `__task_lazy_mmu_mode_resume`).
    #[inline]
    pub fn task_lazy_mmu_mode_resume<A: LazyMmuArch + ?Sized>(&self, arch: &A) {
        self.resume(arch, A::arch_enter_lazy_mmu_mode);
    }

    /// Ends a pause, the outermost by `enter`.
    #[inline]
    pub(crate) fn resume<A: LazyMmuArch + ?Sized>(&self, arch: &A, enter: impl FnOnce(&A)) {
        let before = self.pause_count.get();
        if arch.debug_vm() && before == 0 {
            arch.warn(Warning::ResumeUnderflow);
        }
        self.pause_count.set(before.wrapping_sub(1));
        if before == 1 && self.enable_count.get() > 0 {
            enter(arch);
        }
    }
}
