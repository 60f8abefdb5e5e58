//! Who is told: what a subscriber does, and the node by which a list has it.
//!
//! There are two contracts. Who mirrors page tables in tables of its own is told *before* a change and *behind* it; who walks the CPU's
//! own tables, and has only a TLB to flush, is told whenever the CPU's TLBs are. Linux has one set of functions for both and refuses (since 6.6)
//! whoever has some of each; here they are traits, and a subscriber is of one kind.

use core::fmt;
use core::ptr::{NonNull, null_mut};

use lazytlb_core::memory::{AtomicWord, Ordering::*};

use crate::kernel::NotifierKernel;
use crate::list::{ListLink, Listed};
use crate::range::{Invalidation, WouldBlock};

/// What everybody has who is subscribed to an address space (Linux `struct mmu_notifier_ops`).
///
/// All of it may run at the same time on several CPUs, and at the same time as [`release`](Self::release) or behind it. None of it unwinds: the
/// walk that it was called in would never end, and who unsubscribes would wait for ever.
pub trait MmuNotifier<K: NotifierKernel> {
    /// The address space goes, or the subscription does: no translation of the mm may be in use when this returns, and none may be made
    /// after it. Runs once at least, before any page is freed; it may run twice, and at the same time.
    ///
    /// No end comes behind it of what has started before: whoever waits for one, a fault handler say, must not wait any more.
    ///
    /// Context: may sleep. In a walk: it must not unsubscribe anybody by [`unregister`](crate::Chain::unregister).
    fn release(&self, mm: &K::Mm);

    /// Clears the accessed bits of a range and says whether any was set; translations that may have them cached are flushed.
    ///
    /// Context: must not sleep; the page table's lock may be held.
    fn clear_flush_young(&self, mm: &K::Mm, start: usize, end: usize) -> bool {
        let _ = (mm, start, end);
        false
    }

    /// The same, and no flush is needed.
    fn clear_young(&self, mm: &K::Mm, start: usize, end: usize) -> bool {
        let _ = (mm, start, end);
        false
    }

    /// Says whether an address was accessed, and clears nothing. Context: must not sleep.
    fn test_young(&self, mm: &K::Mm, addr: usize) -> bool {
        let _ = (mm, addr);
        false
    }
}

/// Who has tables of its own, and holds off new translations from start to end.
pub trait Mirror<K: NotifierKernel>: MmuNotifier<K> {
    /// Translations of the range are about to change. When this returns none of them is in use, and none is made until the end comes.
    /// The entries still hold what they held.
    ///
    /// Context: may sleep if [`is_blockable`](Invalidation::is_blockable).
    fn invalidate_range_start(&self, mm: &K::Mm, invalidation: Invalidation<'_>);

    /// They have changed, and pages may be freed already.
    ///
    /// Context: as the start.
    fn invalidate_range_end(&self, mm: &K::Mm, invalidation: Invalidation<'_>);
}

/// Who has tables of its own, may have to sleep to change them, and needs no end.
///
/// It may refuse what must not block. Then nothing comes of the invalidation, and whoever was told of its start is told of its end: so
/// one that refuses must have nothing to end, which in Linux is a rule (4.19, c2655835fd8c) and here a trait.
pub trait Refusing<K: NotifierKernel>: MmuNotifier<K> {
    /// As [`Mirror::invalidate_range_start`]; what holds off new translations is not this call's matter.
    ///
    /// # Errors
    /// If it would have to sleep, and must not. What may block is not refused ([`Warning::RefusedBlockable`](crate::Warning)).
    fn invalidate_range_start(&self, mm: &K::Mm, invalidation: Invalidation<'_>) -> Result<(), WouldBlock>;
}

/// Who walks the CPU's page tables, and has a TLB: an IOMMU.
pub trait SharedTables<K: NotifierKernel>: MmuNotifier<K> {
    /// The CPU's TLBs are flushed, of these addresses: so are this one's, before this returns. The entries have changed; pages are not freed yet.
    ///
    /// Context: never sleeps; the page table's lock may be held.
    fn arch_invalidate_secondary_tlbs(&self, mm: &K::Mm, start: usize, end: usize);
}

/// A subscriber by its contract.
pub enum Contract<K: NotifierKernel> {
    /// Told before and behind each change.
    Mirror(NonNull<dyn Mirror<K>>),
    /// Told before, if it does not refuse.
    Refusing(NonNull<dyn Refusing<K>>),
    /// Told when TLBs are flushed.
    SharedTables(NonNull<dyn SharedTables<K>>),
}

// SAFETY: a pointer. Who calls what it points to does so by the promise of `Node::new`, that any CPU may.
unsafe impl<K: NotifierKernel> Send for Contract<K> {}
// SAFETY: as above.
unsafe impl<K: NotifierKernel> Sync for Contract<K> {}

impl<K: NotifierKernel> Clone for Contract<K> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<K: NotifierKernel> Copy for Contract<K> {}

impl<K: NotifierKernel> fmt::Debug for Contract<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Contract::Mirror(_) => "Mirror",
            Contract::Refusing(_) => "Refusing",
            Contract::SharedTables(_) => "SharedTables",
        })
    }
}

/// The place of a subscriber in a list (Linux `struct mmu_notifier`).
pub struct Node<K: NotifierKernel> {
    link: ListLink<K, Node<K>>,
    /// The address space; null until it is subscribed to one.
    pub(crate) mm: K::AtomicPtr<K::Mm>,
    /// How many have got it ([`Chain::get`](crate::Chain::get)).
    pub(crate) users: K::AtomicUsize,
    contract: Contract<K>,
    /// What it is part of, where several share it.
    #[cfg(feature = "alloc")]
    pub(crate) whole: Option<crate::shared::Whole>,
}

// SAFETY: it is one.
unsafe impl<K: NotifierKernel> Listed<K> for Node<K> {
    fn link(&self) -> &ListLink<K, Self> {
        &self.link
    }
}

impl<K: NotifierKernel> fmt::Debug for Node<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            .field("contract", &self.contract)
            .field("users", &self.users.load(Relaxed))
            .finish_non_exhaustive()
    }
}

impl<K: NotifierKernel> Node<K> {
    /// A subscriber's, which is in no list yet.
    ///
    /// # Safety
    /// What the contract points to is there as long as the node is in a list, or a walk may have found it there. Any CPU may call it.
    pub unsafe fn new(contract: Contract<K>) -> Self {
        Node {
            link: ListLink::default(),
            mm: AtomicWord::new(null_mut()),
            users: AtomicWord::new(0),
            contract,
            #[cfg(feature = "alloc")]
            whole: None,
        }
    }

    /// Whether it is in a list. Stale at once, unless the chain's lock is held.
    pub fn is_linked(&self) -> bool {
        self.link.is_linked()
    }

    #[cfg(feature = "alloc")]
    pub(crate) fn contract(&self) -> &Contract<K> {
        &self.contract
    }

    /// Who is subscribed, as what all have in common.
    pub(crate) fn subscriber(&self) -> &dyn MmuNotifier<K> {
        let one: NonNull<dyn MmuNotifier<K>> = match self.contract {
            Contract::Mirror(one) => one,
            Contract::Refusing(one) => one,
            Contract::SharedTables(one) => one,
        };
        // SAFETY: by the contract of `new`; who has a node has it from a list, in a walk.
        unsafe { one.as_ref() }
    }

    pub(crate) fn mirror(&self) -> Option<&dyn Mirror<K>> {
        let Contract::Mirror(one) = self.contract else { return None };
        // SAFETY: as in `subscriber`.
        Some(unsafe { one.as_ref() })
    }

    pub(crate) fn refusing(&self) -> Option<&dyn Refusing<K>> {
        let Contract::Refusing(one) = self.contract else { return None };
        // SAFETY: as in `subscriber`.
        Some(unsafe { one.as_ref() })
    }

    pub(crate) fn shared_tables(&self) -> Option<&dyn SharedTables<K>> {
        let Contract::SharedTables(one) = self.contract else { return None };
        // SAFETY: as in `subscriber`.
        Some(unsafe { one.as_ref() })
    }
}
