//! The chain of an address space: subscribing, unsubscribing, the end of the address space, and the calls that take no pair.
//!
//! Source: `mm/mmu_notifier.c` of Linux 6.5 and of 2026 (Arcangeli 2008, cddb8a5c14aa; Gunthorpe 2019, 99cb252f5e68), with what was mended since:
//! release before unlinking (3ad3d901bbcf), unlinking that may come twice (d34883d4e35c).

use core::fmt;
use core::ptr::null_mut;

use lazytlb_core::memory::{AtomicWord, Ordering::*};

use crate::interval::Intervals;
use crate::kernel::{NotifierKernel, NotifierMm, Warning, locked};
use crate::list::{LIST, List};
use crate::subscriber::Node;

pub use crate::list::SUBSCRIBED;

/// Beside [`LIST`]: somebody is, or was, in the tree.
pub(crate) const INTERVALS: usize = 2;

/// Who is to be told of changes of one address space's page tables.
///
/// It stands in the mm, and is gone with it.
pub struct Chain<K: NotifierKernel> {
    pub(crate) list: List<K>,
    pub(crate) intervals: Intervals<K>,
}

impl<K: NotifierKernel> Default for Chain<K> {
    fn default() -> Self {
        Chain { list: List::default(), intervals: Intervals::default() }
    }
}

impl<K: NotifierKernel> fmt::Debug for Chain<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let subscribed = self.list.subscribed();
        let (list, intervals) = (subscribed & LIST != 0, subscribed & INTERVALS != 0);
        write!(f, "subscribers: {list}, interval subscribers: {intervals}")
    }
}

/// An address space whose mmap lock the caller holds for writing, with all that anybody could begin an invalidation with.
///
/// # Safety
/// Between [`mm_take_all_locks`](Self::mm_take_all_locks) and [`mm_drop_all_locks`](Self::mm_drop_all_locks) nobody else is between the start and the
/// end of an invalidation of this address space: every lock is taken that is enough to begin one. In Linux these are the mmap lock, each VMA's
/// since they exist (6.4, e611b0a9), and those of the reverse maps of all files and anonymous memory.
pub unsafe trait MmapWrite<K: NotifierKernel> {
    /// The address space.
    fn mm(&self) -> &K::Mm;

    /// How many users it has (`mm_users`). If it has any, it has one as long as this is there: whoever takes the lock to subscribe holds a user
    /// (`MmWithUser`), or has got one by `mmget_not_zero`.
    fn mm_users(&self) -> usize;

    /// Takes the other locks. Context: may sleep.
    ///
    /// # Errors
    /// If a signal came first; then none is held.
    fn mm_take_all_locks(&mut self) -> Result<(), Interrupted>;

    /// Releases them.
    fn mm_drop_all_locks(&mut self);
}

/// A signal came while locks were taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Interrupted;

/// Why somebody could not subscribe. Nothing has changed then.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum RegisterError {
    /// The address space has no users any more, and is about to go.
    NoUsers,
    /// A signal came first.
    Interrupted,
    /// The subscriber is subscribed already.
    Registered,
    /// It has been got too often.
    Overflow,
    /// The interval has no addresses, or some behind the last one.
    NoInterval,
    /// There is no memory for it.
    NoMemory,
    /// The kernel has no MMU notifiers.
    NotConfigured,
}

impl From<Interrupted> for RegisterError {
    fn from(_: Interrupted) -> Self {
        RegisterError::Interrupted
    }
}

impl fmt::Display for RegisterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RegisterError::NoUsers => "the address space has no users any more",
            RegisterError::Interrupted => "a signal came before all locks were taken",
            RegisterError::Registered => "it is subscribed already",
            RegisterError::Overflow => "it has been got too often",
            RegisterError::NoInterval => "the interval has no addresses, or some behind the last one",
            RegisterError::NoMemory => "there is no memory for it",
            RegisterError::NotConfigured => "the kernel has no MMU notifiers",
        })
    }
}

impl core::error::Error for RegisterError {}

/// Why somebody could not unsubscribe. Nothing has changed then.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum UnregisterError {
    /// It was asked for in a callback: it would wait for its own caller.
    InCallback,
    /// It was asked for between the start and the end of an invalidation of the caller's, and would wait for invalidations to end.
    InPair,
    /// The subscriber is not subscribed here.
    NotRegistered,
}

impl fmt::Display for UnregisterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            UnregisterError::InCallback => "unsubscribing in a callback waits for itself",
            UnregisterError::InPair => "unsubscribing while one invalidates waits for itself",
            UnregisterError::NotRegistered => "it is not subscribed here",
        })
    }
}

impl core::error::Error for UnregisterError {}

impl<K: NotifierKernel> Chain<K> {
    /// Whether nobody is subscribed, nor was since the address space began: one load. Relaxed would do for who holds a lock that registration
    /// takes; who walks by others' leave pairs with [`SUBSCRIBED`].
    #[inline]
    pub fn is_unused(&self) -> bool {
        self.list.subscribed() == 0
    }

    /// Whether there are, or were, interval subscribers.
    pub(crate) fn has_intervals(&self) -> bool {
        self.list.subscribed() & INTERVALS != 0
    }

    /// All locks are held meanwhile by which an invalidation could be going on.
    pub(crate) fn exclusively<R>(
        &self,
        kernel: K,
        mmap: &mut impl MmapWrite<K>,
        f: impl FnOnce() -> Result<R, RegisterError>,
    ) -> Result<R, RegisterError> {
        kernel.might_sleep();
        if !K::CONFIG_MMU_NOTIFIER {
            return Err(RegisterError::NotConfigured);
        }
        if mmap.mm_users() == 0 {
            return Err(RegisterError::NoUsers);
        }
        mmap.mm_take_all_locks()?;
        let result = locked(kernel, &self.list.lock, f);
        mmap.mm_drop_all_locks();
        result
    }

    /// Subscribes (Linux `mmu_notifier_register`). Whoever is told of a start is told of its end from now on.
    ///
    /// Context: may sleep; the mmap lock is held for writing.
    ///
    /// # Errors
    /// See [`RegisterError`].
    ///
    /// # Safety
    /// The node stays where it is until [`unregister`](Self::unregister) has returned, or the kernel is told to free it
    /// ([`put`](Self::put)), behind which it is not registered again. Until then the caller owns a reference to the mm's struct. Nobody else registers it at
    /// the same time, in another chain say.
    pub unsafe fn register(
        &self,
        kernel: K,
        mmap: &mut impl MmapWrite<K>,
        node: &Node<K>,
    ) -> Result<(), RegisterError> {
        let mm = core::ptr::from_ref(mmap.mm()).cast_mut();
        self.exclusively(kernel, mmap, || {
            if !node.mm.load(Relaxed).is_null() {
                return Err(RegisterError::Registered);
            }
            node.mm.store(mm, Relaxed);
            node.users.store(1, Relaxed);
            self.list.link(node);
            self.list.subscribe(LIST);
            Ok(())
        })
    }

    /// Unsubscribes, and waits until no callback runs (Linux `mmu_notifier_unregister`). The subscriber is released first, if the end of
    /// the address space has not come before.
    ///
    /// Context: may sleep, with no lock held that a callback takes.
    ///
    /// # Errors
    /// See [`UnregisterError`].
    ///
    /// # Safety
    /// Nobody else unsubscribes this node at the same time, and `mm` is the chain's.
    pub unsafe fn unregister(&self, kernel: K, mm: &K::Mm, node: &Node<K>) -> Result<(), UnregisterError> {
        if kernel.task().is_in_callback() {
            return Err(UnregisterError::InCallback);
        }
        kernel.might_sleep();
        if !core::ptr::eq(node.mm.load(Relaxed), mm) {
            return Err(UnregisterError::NotRegistered);
        }
        // Released before it is unlinked: who does not find it may free pages (3ad3d901bbcf).
        if node.is_linked() {
            self.list.in_walk(kernel, || node.subscriber().release(mm));
            locked(kernel, &self.list.lock, || List::unlink(node));
        }
        self.list.synchronize(kernel);
        node.mm.store(null_mut(), Relaxed);
        Ok(())
    }

    /// Waits until no callback runs that ran when this was called (Linux `mmu_notifier_synchronize`, which waits for all address spaces').
    ///
    /// Context: may sleep, not in a callback: that would wait for itself, is warned of, and never ends, since what the caller frees then is still in use.
    pub fn synchronize(&self, kernel: K) {
        self.list.synchronize(kernel);
    }

    /// Finds a subscriber and takes one more user of it (the first half of Linux `mmu_notifier_get`); who finds none registers one. Context: the mmap
    /// lock held for writing.
    ///
    /// # Errors
    /// If it has too many.
    ///
    /// # Safety
    /// `is_it` says yes to no node that goes before all its users were [put](Self::put): to none that somebody [unregisters](Self::unregister) all the same.
    pub unsafe fn get(
        &self,
        kernel: K,
        mut is_it: impl FnMut(&Node<K>) -> bool,
    ) -> Result<Option<&Node<K>>, RegisterError> {
        locked(kernel, &self.list.lock, || {
            // Who has no users is about to unsubscribe.
            let find = |node| is_it(node).then(|| (node, node.users.load(Relaxed))).filter(|(_, users)| *users > 0);
            let Some((node, users)) = self.list.find(find) else { return Ok(None) };
            if users == isize::MAX.unsigned_abs() {
                return Err(RegisterError::Overflow);
            }
            node.users.store(users + 1, Relaxed);
            Ok(Some(node))
        })
    }

    /// Gives back a user (Linux `mmu_notifier_put`). Says whether it was the last one: then the node is in no list, and is freed, and the
    /// reference to the mm dropped, when [`synchronize`](Self::synchronize) has returned, by a worker if the caller cannot wait. No release is called: the owner
    /// has dropped all translations before.
    ///
    /// Context: any in which the lock may be taken; a callback will do. Put once too often it is warned of, and nothing else, where the node is there still.
    ///
    /// # Safety
    /// The caller owns a user, by [`get`](Self::get) or [`register`](Self::register).
    #[must_use = "the last one's node is to be freed"]
    pub unsafe fn put(&self, kernel: K, node: &Node<K>) -> bool {
        self.put_then(kernel, node, || {
            List::unlink(node);
        })
    }

    /// The same, with what is done with a node whose last user goes, the lock held.
    pub(crate) fn put_then(&self, kernel: K, node: &Node<K>, last: impl FnOnce()) -> bool {
        let left = locked(kernel, &self.list.lock, || {
            let users = node.users.load(Relaxed).checked_sub(1)?;
            node.users.store(users, Relaxed);
            if users == 0 {
                last();
            }
            Some(users)
        });
        if left.is_none() {
            kernel.warn(Warning::PutTooOften);
        }
        left == Some(0)
    }

    /// The address space goes: everybody is told, and nobody is subscribed behind it but interval subscribers, who take themselves out
    /// (Linux `__mmu_notifier_release`).
    ///
    /// Context: may sleep; `mm_users` is zero, nothing is unmapped yet, and the caller holds a reference to the struct.
    pub fn release(&self, kernel: K, mm: &K::Mm) {
        if self.is_unused() {
            return;
        }
        debug_assert!(core::ptr::eq(self, mm.notifiers()), "it is the mm's chain");
        self.release_intervals(kernel);
        if self.list.is_empty() {
            return;
        }
        self.list.in_walk(kernel, || {
            self.list.each(|node| node.subscriber().release(mm));
            // Whoever unsubscribes meanwhile has released, too, or waits below.
            locked(kernel, &self.list.lock, || while self.list.unlink_first().is_some() {});
        });
        // A release that an unregister has begun is over before pages are freed.
        self.list.synchronize(kernel);
    }

    /// The mm's struct is freed (Linux `mmu_notifier_subscriptions_destroy`).
    pub fn destroy(&self, kernel: K) {
        if !self.list.is_empty() || !self.intervals.is_empty() {
            kernel.warn(Warning::NotEmpty);
        }
    }

    /// Clears accessed bits everywhere, and flushes (Linux `mmu_notifier_clear_flush_young`); says whether any was set. Context: must not sleep.
    pub fn clear_flush_young(&self, kernel: K, mm: &K::Mm, start: usize, end: usize) -> bool {
        self.any(kernel, |node| node.subscriber().clear_flush_young(mm, start, end))
    }

    /// The same without a flush (Linux `mmu_notifier_clear_young`). Context: must not sleep.
    pub fn clear_young(&self, kernel: K, mm: &K::Mm, start: usize, end: usize) -> bool {
        self.any(kernel, |node| node.subscriber().clear_young(mm, start, end))
    }

    /// Calls everybody, and says whether anybody said yes.
    fn any(&self, kernel: K, f: impl Fn(&Node<K>) -> bool) -> bool {
        let mut young = false;
        if !self.is_unused() {
            self.list.walk(kernel, || self.list.each(|node| young |= f(node)));
        }
        young
    }

    /// Whether an address was accessed by anybody (Linux `mmu_notifier_test_young`). Context: must not sleep.
    pub fn test_young(&self, kernel: K, mm: &K::Mm, addr: usize) -> bool {
        let mut young = false;
        if !self.is_unused() {
            let is_young = |node: &Node<K>| node.subscriber().test_young(mm, addr).then_some(());
            self.list.walk(kernel, || young = self.list.find(is_young).is_some());
        }
        young
    }

    /// The CPU's TLBs are flushed of addresses of users: so are those that walk the same tables (Linux
    /// `mmu_notifier_arch_invalidate_secondary_tlbs`). Behind the change, before a page or a table is freed; also where permissions only grow, if the
    /// architecture flushes then.
    ///
    /// Context: never sleeps; page-table locks may be held. An empty range is nothing to flush.
    pub fn arch_invalidate_secondary_tlbs(&self, kernel: K, mm: &K::Mm, start: usize, end: usize) {
        if self.is_unused() || start >= end {
            return;
        }
        self.list.walk(kernel, || {
            self.list.each(|node| {
                if let Some(one) = node.shared_tables() {
                    one.arch_invalidate_secondary_tlbs(mm, start, end);
                }
            });
        });
    }
}
