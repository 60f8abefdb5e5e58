//! What architectures defer: back ends over page tables made of a platform's words.
//!
//! | back end | the store | deferred | kept in | a section |
//! | --- | --- | --- | --- | --- |
//! | [`Arm64`] | at once | a pair of barriers, for entries of the kernel that are valid | a bit of the task | may be preempted, and sleep in arm64's own code |
//! | [`PowerpcHash`] | at once | the invalidation of the old entry, in the hash table and the TLB | a batch of the CPU | keeps its CPU |
//! | [`Sparc64`] | at once | the same, in the TSB and the TLB | a batch of the CPU | keeps its CPU |
//! | [`Xen`] | queued | the store and flushes of the TLB, in order | a queue of the CPU | may be preempted, with hooks at the switch |
//! | [`S390`] | cached | the store and its invalidation, of the entries that were named | a cache of the CPU | keeps its CPU |
//!
//! What a section's own code reads: the new value where the store is at once; under [`Xen`] **the old one**, until what is queued
//! is flushed; under [`S390`] the new one through [`PteAccess::ptep_get`], the old one through a plain load.
//!
//! A kernel names its hardware in a trait for each back end ([`arm64::Arm64Kernel`] and so on) and calls [`PteAccess`] where it
//! changes entries. The state for each CPU or task is the back end's type in the kernel's storage.

pub mod arm64;
pub mod powerpc;
pub mod s390;
pub mod sparc64;
pub mod xen;

mod batch;

pub use arm64::Arm64;
pub use batch::Batch;
pub use powerpc::PowerpcHash;
pub use s390::S390;
pub use sparc64::Sparc64;
pub use xen::Xen;

use core::fmt;
use core::ptr::NonNull;

use lazytlb_core::memory::{AtomicWord, Memory, Ordering::Relaxed};

use crate::arch::{LazyMmuArch, Warning};

/// The kernel around a back end: a small copyable handle over its memory and its current task.
///
/// Context of all calls: any, if they do not say otherwise.
pub trait MmuKernel: Memory {
    /// Whether calls that do not pair are warned of ([`LazyMmuArch::debug_vm`]).
    fn debug_vm(self) -> bool {
        false
    }

    /// See [`LazyMmuArch::in_interrupt`].
    fn in_interrupt(self) -> bool;

    /// Whether the current task has the mode on, here and now
    /// ([`is_lazy_mmu_mode_active`](crate::LazyMmuState::is_lazy_mmu_mode_active)).
    fn is_lazy_mmu_mode_active(self) -> bool;

    /// Disables preemption; nests.
    fn preempt_disable(self);

    /// Enables it again.
    fn preempt_enable(self);

    /// See [`LazyMmuArch::warn`].
    fn warn(self, warning: Warning) {
        let _ = warning;
    }

    /// See [`LazyMmuArch::bug`].
    ///
    /// # Panics
    /// By default.
    fn bug(self, warning: Warning) {
        panic!("lazy MMU mode: {warning}")
    }

    /// What an entry that maps nothing holds.
    const PTE_NONE: usize = 0;

    /// Whether the hardware would translate by an entry of this value.
    fn pte_present(value: usize) -> bool;

    /// The value, not accessed.
    fn pte_mkold(value: usize) -> usize;

    /// The value, not writable.
    fn pte_wrprotect(value: usize) -> usize;
}

/// An entry of a page table, and what it maps.
pub struct Pte<M: Memory> {
    /// The mm, by a number that no other has at the time. The kernel's own is 0.
    pub mm: usize,
    /// The address that the entry maps.
    pub addr: usize,
    /// The entry.
    pub ptep: NonNull<M::AtomicUsize>,
}

impl<M: Memory> Clone for Pte<M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M: Memory> Copy for Pte<M> {}

impl<M: Memory> fmt::Debug for Pte<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mm {}, address {:#x}", self.mm, self.addr)
    }
}

impl<M: Memory> Pte<M> {
    /// The entry as the hardware and other CPUs see it.
    ///
    /// # Safety
    /// The entry is there.
    #[track_caller]
    pub unsafe fn load(self) -> usize {
        // SAFETY: the caller's word.
        unsafe { self.ptep.as_ref() }.load(Relaxed)
    }

    /// Stores into the entry, past any back end.
    ///
    /// # Safety
    /// The entry is there.
    #[track_caller]
    pub unsafe fn store(self, value: usize) {
        // SAFETY: the caller's word.
        unsafe { self.ptep.as_ref() }.store(value, Relaxed);
    }

    /// Stores into the entry and returns what it held.
    ///
    /// # Safety
    /// The entry is there.
    #[track_caller]
    pub unsafe fn swap(self, value: usize) -> usize {
        // SAFETY: the caller's word.
        unsafe { self.ptep.as_ref() }.swap(value, Relaxed)
    }

    /// Makes of the entry what `change` says, in one step: nothing is lost that hardware writes into it meanwhile, its accessed and
    /// dirty bits. Returns what it held; stores nothing if that is to stay.
    ///
    /// # Safety
    /// The entry is there.
    #[track_caller]
    pub unsafe fn update(self, change: impl Fn(usize) -> usize) -> usize {
        // SAFETY: the caller's word.
        let word = unsafe { self.ptep.as_ref() };
        let mut old = word.load(Relaxed);
        loop {
            let new = change(old);
            if new == old {
                return old;
            }
            match word.compare_exchange(old, new, Relaxed, Relaxed) {
                Ok(_) => return old,
                Err(now) => old = now,
            }
        }
    }
}

/// How entries are read and changed under a back end, by the kernel's names.
///
/// # Safety
/// Of each call: the entry is there, and stays until what was deferred of the change is in force; the caller holds the lock of its
/// table, or is the only one who changes it.
pub trait PteAccess: LazyMmuArch {
    /// The memory that entries are made of.
    type Kernel: MmuKernel;

    /// Reads an entry as the caller has left it, where the back end can tell: see the table of [`backends`](self).
    ///
    /// # Safety
    /// See [`PteAccess`].
    #[track_caller]
    unsafe fn ptep_get(&self, pte: Pte<Self::Kernel>) -> usize {
        // SAFETY: the caller's promise.
        unsafe { pte.load() }
    }

    /// Reads an entry as the hardware sees it: for who walks tables without their lock.
    ///
    /// # Safety
    /// The entry is there.
    #[track_caller]
    unsafe fn ptep_get_lockless(&self, pte: Pte<Self::Kernel>) -> usize {
        // SAFETY: the caller's promise.
        unsafe { pte.load() }
    }

    /// Changes an entry. Behind the end of the section, or a flush, the old value is in no TLB of any CPU's but by the kernel's own
    /// flush, which it owes where the back end does not batch invalidations.
    ///
    /// # Safety
    /// See [`PteAccess`].
    #[track_caller]
    unsafe fn set_pte(&self, pte: Pte<Self::Kernel>, value: usize);

    /// Takes something away from an entry, and returns what it held: `change` gives less than it gets, or the same. Where hardware
    /// writes accessed and dirty bits into entries it is one step, so that none of them is lost between the read and the store.
    ///
    /// # Safety
    /// See [`PteAccess`].
    #[track_caller]
    unsafe fn pte_update(&self, pte: Pte<Self::Kernel>, change: impl Fn(usize) -> usize) -> usize;

    /// Clears an entry and returns what it held.
    ///
    /// # Safety
    /// See [`PteAccess`].
    #[track_caller]
    unsafe fn ptep_get_and_clear(&self, pte: Pte<Self::Kernel>) -> usize {
        // SAFETY: the caller's promise.
        unsafe { self.pte_update(pte, |_| Self::Kernel::PTE_NONE) }
    }

    /// As [`ptep_get_and_clear`](Self::ptep_get_and_clear), of an address space that goes as a whole: the caller flushes all of it in the end,
    /// and nothing need be invalidated for each entry.
    ///
    /// # Safety
    /// See [`PteAccess`].
    #[track_caller]
    unsafe fn ptep_get_and_clear_full(&self, pte: Pte<Self::Kernel>) -> usize {
        // SAFETY: the caller's promise.
        unsafe { self.ptep_get_and_clear(pte) }
    }

    /// Makes an entry old. Says whether it was young.
    ///
    /// # Safety
    /// See [`PteAccess`].
    #[track_caller]
    unsafe fn ptep_test_and_clear_young(&self, pte: Pte<Self::Kernel>) -> bool {
        // SAFETY: the caller's promise.
        let value = unsafe { self.pte_update(pte, Self::Kernel::pte_mkold) };
        Self::Kernel::pte_mkold(value) != value
    }

    /// Write-protects an entry.
    ///
    /// # Safety
    /// See [`PteAccess`].
    #[track_caller]
    unsafe fn ptep_set_wrprotect(&self, pte: Pte<Self::Kernel>) {
        // SAFETY: the caller's promise.
        unsafe { self.pte_update(pte, Self::Kernel::pte_wrprotect) };
    }

    /// Begins to change an entry's protection: returns what it holds, which the hardware does not change until the commit.
    ///
    /// # Safety
    /// See [`PteAccess`].
    #[track_caller]
    unsafe fn ptep_modify_prot_start(&self, pte: Pte<Self::Kernel>) -> usize {
        // SAFETY: the caller's promise.
        unsafe { self.ptep_get_and_clear(pte) }
    }

    /// Ends that.
    ///
    /// # Safety
    /// See [`PteAccess`]; behind [`ptep_modify_prot_start`](Self::ptep_modify_prot_start).
    #[track_caller]
    unsafe fn ptep_modify_prot_commit(&self, pte: Pte<Self::Kernel>, value: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.set_pte(pte, value) };
    }
}

/// The part of [`LazyMmuArch`] that is the kernel's, for a back end over it.
macro_rules! kernels_part {
    () => {
        fn debug_vm(&self) -> bool {
            self.0.debug_vm()
        }
        fn in_interrupt(&self) -> bool {
            self.0.in_interrupt()
        }
        fn warn(&self, warning: Warning) {
            self.0.warn(warning);
        }
        fn bug(&self, warning: Warning) {
            self.0.bug(warning);
        }
    };
}
use kernels_part;
