//! Pairs: a change of page tables has a start and an end.

use core::fmt;
use core::marker::PhantomData;

use crate::chain::Chain;
use crate::kernel::{NotifierKernel, NotifierMm, Warning};
use crate::range::{Invalidation, Range, WouldBlock};

impl<K: NotifierKernel> Chain<K> {
    /// Page tables are about to change: when this returns nobody else translates by the range
    /// (Linux `mmu_notifier_invalidate_range_start`). [`invalidate_range_end`](Self::invalidate_range_end) must follow.
    ///
    /// Context: may sleep.
    #[inline]
    pub fn invalidate_range_start(&self, kernel: K, mm: &K::Mm, range: &Range) {
        kernel.might_sleep();
        if !self.is_unused() {
            self.start_blockable(kernel, mm, range);
        }
    }

    /// What may block is refused by nobody who is listened to.
    fn start_blockable(&self, kernel: K, mm: &K::Mm, range: &Range) {
        let started = self.start(kernel, mm, Invalidation::new(range, true));
        debug_assert!(started.is_ok(), "a refusal is warned of");
    }

    /// The same where the caller must not wait (Linux `mmu_notifier_invalidate_range_start_nonblock`; the OOM reaper).
    ///
    /// Context: a lock may be held that others wait for to get memory; no spinlock.
    ///
    /// # Errors
    /// If somebody would have to sleep. Whoever was told of the start has been told of its end then: nothing may be changed, and no end follows.
    #[inline]
    pub fn invalidate_range_start_nonblock(&self, kernel: K, mm: &K::Mm, range: &Range) -> Result<(), WouldBlock> {
        if self.is_unused() { Ok(()) } else { self.start(kernel, mm, Invalidation::new(range, false)) }
    }

    /// Page tables have changed, and pages may be freed (Linux `mmu_notifier_invalidate_range_end`).
    ///
    /// Context: as the start, in the same task; `blockable` says which of the two it was. If the task has begun none it is warned of, and nothing else.
    ///
    /// # Safety
    /// It ends one that was begun, and has not been ended: another's end would let go of subscribers who are being called.
    #[inline]
    pub unsafe fn invalidate_range_end(&self, kernel: K, mm: &K::Mm, range: &Range, blockable: bool) {
        if !self.is_unused() {
            self.end(kernel, mm, Invalidation::new(range, blockable));
        }
    }

    // Not inlined, so that callers have a load and a branch where nobody is subscribed, and little around them.
    #[inline(never)]
    fn start(&self, kernel: K, mm: &K::Mm, invalidation: Invalidation<'_>) -> Result<(), WouldBlock> {
        debug_assert!(core::ptr::eq(self, mm.notifiers()), "it is the mm's chain");
        if self.has_intervals() {
            self.start_intervals(kernel, invalidation)?;
        }
        let started = self.start_list(kernel, mm, invalidation);
        if started.is_ok() {
            kernel.task().begins_pair();
        } else if self.has_intervals() {
            // The intervals have started, and nobody ends them if the caller is refused. (Linux leaves them so, as of 2026: whoever unsubscribes then
            // waits for ever.)
            self.end_intervals(kernel);
        }
        started
    }

    /// Tells the list. If somebody refuses, all the others are told of the start and then of the end: whoever is found by the second pass was there in the
    /// first, since nobody subscribes meanwhile.
    fn start_list(&self, kernel: K, mm: &K::Mm, invalidation: Invalidation<'_>) -> Result<(), WouldBlock> {
        let mut started = Ok(());
        self.list.walk(kernel, || {
            started = self.list.start_each(kernel, mm, invalidation);
            if started.is_err() {
                self.list.end_each(kernel, mm, invalidation);
            }
        });
        started
    }

    #[inline(never)]
    fn end(&self, kernel: K, mm: &K::Mm, invalidation: Invalidation<'_>) {
        if !kernel.task().ends_pair() {
            kernel.warn(Warning::EndWithoutStart);
            return;
        }
        if self.has_intervals() {
            self.end_intervals(kernel);
        }
        self.list.walk(kernel, || self.list.end_each(kernel, mm, invalidation));
    }
}

/// An invalidation from its start, until dropped: pairs cannot be forgotten on an error's way out. It is dropped by the task that has begun it.
#[must_use = "the invalidation ends where this is dropped"]
pub struct RangeGuard<'a, K: NotifierKernel> {
    kernel: K,
    mm: &'a K::Mm,
    range: &'a Range,
    blockable: bool,
    /// Whether nobody was subscribed when it began: then nobody is told of its end, who has not been told of its start.
    unused: bool,
    _of_task: PhantomData<*const ()>,
}

impl<K: NotifierKernel> fmt::Debug for RangeGuard<'_, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.range)
    }
}

impl<'a, K: NotifierKernel> RangeGuard<'a, K> {
    /// Begins ([`Chain::invalidate_range_start`]). Context: may sleep.
    #[inline]
    pub fn start(kernel: K, mm: &'a K::Mm, range: &'a Range) -> Self {
        kernel.might_sleep();
        let chain = mm.notifiers();
        let unused = chain.is_unused();
        if !unused {
            chain.start_blockable(kernel, mm, range);
        }
        RangeGuard { kernel, mm, range, blockable: true, unused, _of_task: PhantomData }
    }

    /// Begins, if nobody would have to sleep ([`Chain::invalidate_range_start_nonblock`]).
    ///
    /// # Errors
    /// If somebody would.
    #[inline]
    pub fn try_start(kernel: K, mm: &'a K::Mm, range: &'a Range) -> Result<Self, WouldBlock> {
        let chain = mm.notifiers();
        let unused = chain.is_unused();
        if !unused {
            chain.start(kernel, mm, Invalidation::new(range, false))?;
        }
        Ok(RangeGuard { kernel, mm, range, blockable: false, unused, _of_task: PhantomData })
    }
}

impl<K: NotifierKernel> Drop for RangeGuard<'_, K> {
    #[inline]
    fn drop(&mut self) {
        if !self.unused {
            self.mm.notifiers().end(self.kernel, self.mm, Invalidation::new(self.range, self.blockable));
        }
    }
}
