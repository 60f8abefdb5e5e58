//! sparc64: a batch of addresses.
//!
//! Source: f36391d2790d (2013, onto these hooks), a1d416bf9faf (2025, preemption off), dacd24ec4965 (on the generic state, Linux 7.0).

use super::batch::Batch;
use super::{MmuKernel, Pte, PteAccess, kernels_part};
use crate::arch::{LazyMmuArch, Warning};

/// A CPU's batch (`tlb_batch`): addresses, the lowest bit set where the page was executable. Linux has 192.
pub type TlbBatch<K, const N: usize> = Batch<K, N, 1>;

/// What such a machine has beside the common.
pub trait SparcKernel<const N: usize>: MmuKernel {
    /// This CPU's batch. Context: preemption off.
    fn tlb_batch(&self) -> &TlbBatch<Self, N>;

    /// Whether pages of this entry are executed.
    fn is_exec(value: usize) -> bool;

    /// The size of the page at an address, which must be the same in a batch.
    fn page_shift(self, mm: usize, addr: usize) -> usize {
        let _ = (mm, addr);
        0
    }

    /// Whether an mm has a context, so that TLBs can have something of it.
    fn has_context(self, mm: usize) -> bool;

    /// Takes addresses out of the software's cache of translations (`flush_tsb_user`). Context: preemption off.
    fn flush_tsb(self, mm: usize, addrs: impl Iterator<Item = usize>);

    /// Takes one address out of all TLBs, and waits until it is (`global_flush_tlb_page`). Context: preemption off.
    fn global_flush_tlb_page(self, mm: usize, addr: usize);

    /// The same for a whole batch: other CPUs read it while they do, and it waits for all of them
    /// (`smp_flush_tlb_pending`). Context: preemption off.
    fn smp_flush_tlb_pending(self, batch: &TlbBatch<Self, N>);
}

/// Stores at once; the old entry's invalidation, in the software's cache of translations and in the TLBs, waits.
///
/// Preemption is off from enter to leave. Entries of the kernel are not batched, and nobody waits for them: their flush is the caller's.
///
/// *What breaks:* using the translation that was changed before the end of the section.
#[derive(Clone, Copy, Debug)]
pub struct Sparc64<K, const N: usize>(pub K);

impl<K: SparcKernel<N>, const N: usize> Sparc64<K, N> {
    /// The old entry is to go, now or with others (`tlb_batch_add`).
    fn tlb_batch_add(&self, mm: usize, addr: usize, is_exec: bool) {
        self.0.preempt_disable();
        let batch = self.0.tlb_batch();
        let shift = self.0.page_shift(mm, addr);
        if !batch.takes(mm, shift) {
            self.flush_tlb_pending(batch);
        }
        if self.0.is_lazy_mmu_mode_active() {
            if batch.add(mm, shift, [addr | usize::from(is_exec)]) {
                self.flush_tlb_pending(batch);
            }
        } else {
            self.0.flush_tsb(mm, core::iter::once(addr));
            self.0.global_flush_tlb_page(mm, addr);
        }
        self.0.preempt_enable();
    }

    /// An entry has changed that held `old`.
    fn has_changed(&self, pte: Pte<K>, old: usize) {
        if pte.mm != 0 && K::pte_present(old) {
            self.tlb_batch_add(pte.mm, pte.addr, K::is_exec(old));
        }
    }

    /// Invalidates what is in a batch (`flush_tlb_pending`).
    fn flush_tlb_pending(&self, batch: &TlbBatch<K, N>) {
        let addrs = || batch.entries(batch.len()).map(|[addr]| addr & !1);
        let mut first = addrs();
        let Some(addr) = first.next() else { return };
        self.0.flush_tsb(batch.mm(), addrs());
        if self.0.has_context(batch.mm()) {
            match first.next() {
                None => self.0.global_flush_tlb_page(batch.mm(), addr),
                Some(_) => self.0.smp_flush_tlb_pending(batch),
            }
        }
        batch.clear();
    }
}

impl<K: SparcKernel<N>, const N: usize> LazyMmuArch for Sparc64<K, N> {
    type Ptes = ();

    kernels_part!();

    fn arch_enter_lazy_mmu_mode(&self) {
        self.0.preempt_disable();
    }

    fn arch_leave_lazy_mmu_mode(&self) {
        self.arch_flush_lazy_mmu_mode();
        self.0.preempt_enable();
    }

    fn arch_flush_lazy_mmu_mode(&self) {
        self.flush_tlb_pending(self.0.tlb_batch());
    }
}

impl<K: SparcKernel<N>, const N: usize> PteAccess for Sparc64<K, N> {
    type Kernel = K;

    unsafe fn set_pte(&self, pte: Pte<K>, value: usize) {
        // SAFETY: the caller's promise.
        let old = unsafe { pte.swap(value) };
        self.has_changed(pte, old);
    }

    /// Nothing is batched of an address space that goes as a whole: its context goes.
    unsafe fn ptep_get_and_clear_full(&self, pte: Pte<K>) -> usize {
        // SAFETY: the caller's promise.
        unsafe { pte.swap(K::PTE_NONE) }
    }

    unsafe fn pte_update(&self, pte: Pte<K>, change: impl Fn(usize) -> usize) -> usize {
        // SAFETY: the caller's promise.
        let old = unsafe { pte.update(&change) };
        if change(old) != old {
            self.has_changed(pte, old);
        }
        old
    }
}
