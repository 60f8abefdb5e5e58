//! What lazy MMU mode asks of an architecture.

use core::fmt;

/// The architecture's half of lazy MMU mode: what is deferred between enter and leave is its secret.
///
/// The generic layer calls [`enter`](Self::arch_enter_lazy_mmu_mode), then
/// [`flush`](Self::arch_flush_lazy_mmu_mode) any number of times, then
/// [`leave`](Self::arch_leave_lazy_mmu_mode), and so on, as long as its callers pair their calls. Where they do not, the callbacks
/// come as Linux's would; see [`Warning`] for what is noticed.
///
/// **The counters change before the callback runs**, and the task can be preempted in between. So what an architecture does at a
/// context switch must not assume that its own state agrees with
/// [`task_lazy_mmu_mode_active`](crate::LazyMmuState::task_lazy_mmu_mode_active): Xen did, and crashed (4594437880ce).
/// What is known to be right: state in the task alone (arm64), preemption off from enter to leave (powerpc, sparc), callbacks
/// that may come twice (Xen since 7.1-rc4), no state besides the counters.
///
/// Nothing here is unsafe to call or to get wrong: whether the mode is on decides when a change of a page table takes effect, and
/// the functions that change page tables have the obligations. A hint through which an architecture stores is unsafe to make
/// ([`PteRange`](crate::backends::s390::PteRange)).
///
/// Context of all callbacks: that of the call of the generic layer that makes them, never an interrupt.
pub trait LazyMmuArch {
    /// What [`enable_with_ptes`](crate::LazyMmuState::lazy_mmu_mode_enable_with_ptes) tells the architecture: in Linux the mm, the
    /// addresses, and the first entry. `()` where the architecture takes no hint.
    type Ptes: Copy;

    /// Whether calls that do not pair are warned of (Linux `CONFIG_DEBUG_VM`).
    fn debug_vm(&self) -> bool {
        false
    }

    /// Whether the caller is in a non-maskable or hardware interrupt, in a softirq, or has bottom halves disabled
    /// (Linux `in_interrupt`). There the mode is off, whatever the interrupted task has set.
    fn in_interrupt(&self) -> bool;

    /// The mode begins.
    fn arch_enter_lazy_mmu_mode(&self);

    /// The mode begins, and most of what follows will change these entries. A hint: other entries must still work.
    fn arch_enter_lazy_mmu_mode_with_ptes(&self, ptes: Self::Ptes) {
        let _ = ptes;
        self.arch_enter_lazy_mmu_mode();
    }

    /// The mode ends: all that was deferred takes effect before this returns.
    fn arch_leave_lazy_mmu_mode(&self);

    /// All that was deferred takes effect before this returns; the mode goes on.
    fn arch_flush_lazy_mmu_mode(&self);

    /// Reports a call that pairs with nothing, in a kernel once for each place (Linux `VM_WARN_ON_ONCE`). Only called where
    /// [`debug_vm`](Self::debug_vm) says so, and the call then does what it would have done.
    fn warn(&self, warning: Warning) {
        let _ = warning;
    }

    /// As [`warn`](Self::warn), where a generation stops the machine (Linux `VM_BUG_ON`). The merged one never does.
    ///
    /// # Panics
    /// By default. Where it returns, the call does what it would have done.
    fn bug(&self, warning: Warning) {
        panic!("lazy MMU mode: {warning}")
    }
}

/// What is noticed of calls that do not pair. What Linux does not notice, [`Section`](crate::Section) and the lab do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[non_exhaustive]
pub enum Warning {
    /// Enabled once more than the counter can hold.
    EnableOverflow,
    /// Disabled without having been enabled.
    DisableUnderflow,
    /// Paused once more than the counter can hold.
    PauseOverflow,
    /// Resumed without having been paused.
    ResumeUnderflow,
    /// Enabled while it is enabled, where sections must not nest (arm64 before May 2025).
    Nested,
    /// Enabled, disabled or paused while paused, or resumed while not, where that is not allowed (all but the merged generation).
    Paused,
    /// Paused or resumed where nothing is enabled, likewise.
    NotEnabled,
    /// An architecture was entered that was in the mode already (Xen's own assertion).
    EnteredTwice,
    /// An architecture was left that was not in the mode (likewise).
    NotEntered,
    /// A section or a pause was forgotten, not dropped; it is ended now (the guards of [`scope`](crate::scope)).
    Forgotten,
    /// A section or a pause began inside an interrupt and ends outside, or the reverse, so that only one end of it counts (likewise).
    ContextChanged,
    /// Raw calls inside of a section or a pause did not pair (likewise).
    Unbalanced,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Warning::EnableOverflow => "enable_count overflows",
            Warning::DisableUnderflow => "disable without enable",
            Warning::PauseOverflow => "pause_count overflows",
            Warning::ResumeUnderflow => "resume without pause",
            Warning::Nested => "enable while enabled",
            Warning::Paused => "call while paused, or resume while not",
            Warning::NotEnabled => "pause or resume while not enabled",
            Warning::EnteredTwice => "entered while in the mode",
            Warning::NotEntered => "left while not in the mode",
            Warning::Forgotten => "a guard was forgotten",
            Warning::ContextChanged => "began inside an interrupt and ends outside, or the reverse",
            Warning::Unbalanced => "raw calls inside of a section did not pair",
        })
    }
}
