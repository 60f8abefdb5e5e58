//! powerpc 64s with a hash table: a batch of old entries.
//!
//! Source: a741e6796957 (2007, onto these hooks), b9ef323ea168 (2022, preemption off), 313a05a15a1b (on the generic state,
//! Linux 7.0).

use super::batch::Batch;
use super::{MmuKernel, Pte, PteAccess, kernels_part};
use crate::arch::{LazyMmuArch, Warning};

/// A CPU's batch (`ppc64_tlb_batch`): the address of each entry and what it held. Linux has 192.
pub type HashBatch<K, const N: usize> = Batch<K, N, 2>;

/// What such a machine has beside the common.
pub trait HashKernel<const N: usize>: MmuKernel {
    /// Whether the machine has no hash table but walks radix tables: then nothing is ever batched.
    fn radix_enabled(self) -> bool;

    /// This CPU's batch. Context: preemption off.
    fn hash_batch(&self) -> &HashBatch<Self, N>;

    /// Whether an entry of this value is in the hash table.
    fn is_hashed(value: usize) -> bool;

    /// The value, not in the hash table.
    fn unhashed(value: usize) -> usize;

    /// The page size, and the size of the segment, of an address: what must be the same in a batch.
    fn page_kind(self, mm: usize, addr: usize) -> usize {
        let _ = (mm, addr);
        0
    }

    /// Takes one page's entry out of the hash table and all TLBs (`flush_hash_page`). Context: preemption off.
    fn flush_hash_page(self, mm: usize, kind: usize, entry: [usize; 2]);

    /// The same for a whole batch (`flush_hash_range`). Context: preemption off.
    fn flush_hash_range(self, batch: &HashBatch<Self, N>);
}

/// Stores at once; the old entry's invalidation waits.
///
/// Preemption is off from enter to leave, so the batch belongs to the section. With the lock of the table held the batch is empty
/// before it is released: else another CPU could put a new entry into the hash table while the old one is there (a741e6796957).
/// A batch of the CPU can be that of another mm: while fork copies, reclaim may look at other tables.
///
/// *What breaks:* using the translation that was changed before the end of the section.
#[derive(Clone, Copy, Debug)]
pub struct PowerpcHash<K, const N: usize>(pub K);

impl<K: HashKernel<N>, const N: usize> PowerpcHash<K, N> {
    /// The old entry is to go, now or with others (`hpte_need_flush`).
    fn hpte_need_flush(&self, mm: usize, addr: usize, old: usize) {
        // Who is not in a section may be preempted, and the batch is the CPU's.
        self.0.preempt_disable();
        let kind = self.0.page_kind(mm, addr);
        if self.0.is_lazy_mmu_mode_active() {
            let batch = self.0.hash_batch();
            if !batch.takes(mm, kind) {
                self.flush_tlb_batch(batch);
            }
            if batch.add(mm, kind, [addr, old]) {
                self.flush_tlb_batch(batch);
            }
        } else {
            self.0.flush_hash_page(mm, kind, [addr, old]);
        }
        self.0.preempt_enable();
    }

    /// Invalidates what is in a batch (`__flush_tlb_pending`).
    fn flush_tlb_batch(&self, batch: &HashBatch<K, N>) {
        let mut entries = batch.entries(batch.len());
        match (entries.next(), entries.next()) {
            (None, _) => return,
            (Some(only), None) => self.0.flush_hash_page(batch.mm(), batch.kind(), only),
            _ => self.0.flush_hash_range(batch),
        }
        batch.clear();
    }

    /// What batches pages to free calls before it frees them (`tlb_flush`): nothing of them may be left to invalidate.
    pub fn tlb_flush(&self) {
        self.0.preempt_disable();
        self.flush_tlb_batch(self.0.hash_batch());
        self.0.preempt_enable();
    }
}

impl<K: HashKernel<N>, const N: usize> LazyMmuArch for PowerpcHash<K, N> {
    type Ptes = ();

    kernels_part!();

    fn arch_enter_lazy_mmu_mode(&self) {
        if !self.0.radix_enabled() {
            self.0.preempt_disable();
        }
    }

    fn arch_leave_lazy_mmu_mode(&self) {
        if !self.0.radix_enabled() {
            self.flush_tlb_batch(self.0.hash_batch());
            self.0.preempt_enable();
        }
    }

    fn arch_flush_lazy_mmu_mode(&self) {
        if !self.0.radix_enabled() {
            self.flush_tlb_batch(self.0.hash_batch());
        }
    }
}

impl<K: HashKernel<N>, const N: usize> PteAccess for PowerpcHash<K, N> {
    type Kernel = K;

    unsafe fn set_pte(&self, pte: Pte<K>, value: usize) {
        // SAFETY: the caller's promise.
        let old = unsafe { pte.swap(K::unhashed(value)) };
        if K::is_hashed(old) {
            self.hpte_need_flush(pte.mm, pte.addr, old);
        }
    }

    unsafe fn pte_update(&self, pte: Pte<K>, change: impl Fn(usize) -> usize) -> usize {
        let changes = |value: usize| change(value) != value;
        // SAFETY: the caller's promise.
        let old = unsafe { pte.update(|old| if changes(old) { K::unhashed(change(old)) } else { old }) };
        if changes(old) && K::is_hashed(old) {
            self.hpte_need_flush(pte.mm, pte.addr, old);
        }
        old
    }
}
