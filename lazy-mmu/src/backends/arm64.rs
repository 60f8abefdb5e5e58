//! arm64: one pair of barriers for all entries of a section.
//!
//! Source: 5fdd05efa1cd (May 2025), b81c688426a9 (interrupts), 4dd9b4d7a8d5 (on the generic state, Linux 7.0).

use lazytlb_core::memory::LocalWord;

use super::{MmuKernel, Pte, PteAccess, kernels_part};
use crate::arch::{LazyMmuArch, Warning};

/// What arm64 has beside the common.
pub trait Arm64Kernel: MmuKernel {
    /// The current task's flag that barriers are due (`TIF_LAZY_MMU_PENDING`).
    fn pending(&self) -> &Self::LocalUsize;

    /// A store barrier, so that table walkers see the store, and an instruction barrier, so that what this CPU has found invalid
    /// ahead of time is looked up anew (`dsb(ishst); isb()`).
    fn emit_pte_barriers(self);

    /// Whether a new value is one that the kernel relies on at once: valid, and not the user's. User entries and invalid ones
    /// need no barrier: who needs them takes a fault, or flushes.
    fn is_valid_kernel_pte(value: usize) -> bool;
}

/// Stores at once; the barriers behind valid entries of the kernel wait for the end of the section.
///
/// All its state is in the task, so a section may be preempted and may move to another CPU: a context switch has a `dsb` of its own,
/// and the `isb` comes when the task leaves the mode, before it touches what it has mapped. For the same reason arm64's own code may
/// sleep in a section.
///
/// *What breaks:* touching what a section has mapped before its end or a flush.
#[derive(Clone, Copy, Debug)]
pub struct Arm64<K>(pub K);

impl<K: Arm64Kernel> Arm64<K> {
    /// Barriers, now or at the end of the section (`queue_pte_barriers`). The flag is set with a plain store, and only if it is
    /// not set: an atomic for each entry was what reviewers did not want.
    fn queue_pte_barriers(&self) {
        if !self.0.is_lazy_mmu_mode_active() {
            self.0.emit_pte_barriers();
        } else if self.0.pending().get() == 0 {
            self.0.pending().set(1);
        }
    }
}

impl<K: Arm64Kernel> LazyMmuArch for Arm64<K> {
    type Ptes = ();

    kernels_part!();

    fn arch_enter_lazy_mmu_mode(&self) {}

    fn arch_leave_lazy_mmu_mode(&self) {
        self.arch_flush_lazy_mmu_mode();
    }

    fn arch_flush_lazy_mmu_mode(&self) {
        if self.0.pending().get() != 0 {
            self.0.pending().set(0);
            self.0.emit_pte_barriers();
        }
    }
}

impl<K: Arm64Kernel> PteAccess for Arm64<K> {
    type Kernel = K;

    unsafe fn set_pte(&self, pte: Pte<K>, value: usize) {
        // SAFETY: the caller's promise.
        unsafe { pte.store(value) };
        if K::is_valid_kernel_pte(value) {
            self.queue_pte_barriers();
        }
    }

    /// No barrier: who takes something away flushes.
    unsafe fn pte_update(&self, pte: Pte<K>, change: impl Fn(usize) -> usize) -> usize {
        // SAFETY: the caller's promise.
        unsafe { pte.update(change) }
    }
}
