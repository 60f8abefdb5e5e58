//! A list of subscribers, and ways through it.

use core::num::NonZero;
use core::ptr::{NonNull, null_mut};

use lazytlb_core::memory::{AtomicInt, AtomicWord, Label, Labelled, Ordering::*};

use crate::kernel::{NotifierKernel, SpinLock, Warning};
use crate::range::{Invalidation, WouldBlock};
use crate::subscriber::Node;
use crate::task::in_callback;
use crate::walks::{ChainId, Walks};

/// Somebody subscribes: who changes page tables without a lock that registration takes sees the list, or nothing of it.
pub const SUBSCRIBED: Label = Label::new("notifier.subscribed");

/// In [`List::subscribed`]: somebody is, or was, in the list.
pub(crate) const LIST: usize = 1;

/// The place of something in a list.
pub(crate) struct ListLink<K: NotifierKernel, N> {
    next: K::AtomicPtr<N>,
    /// The word that leads to it; null where it is in no list.
    pprev: K::AtomicPtr<K::AtomicPtr<N>>,
}

impl<K: NotifierKernel, N> Default for ListLink<K, N> {
    fn default() -> Self {
        ListLink { next: AtomicWord::new(null_mut()), pprev: AtomicWord::new(null_mut()) }
    }
}

impl<K: NotifierKernel, N> ListLink<K, N> {
    /// Whether it is in a list. Stale at once, unless the list's lock is held.
    pub(crate) fn is_linked(&self) -> bool {
        !self.pprev.load(Relaxed).is_null()
    }
}

/// What can be in a list.
///
/// # Safety
/// [`link`](Self::link) is a field.
pub(crate) unsafe trait Listed<K: NotifierKernel>: Sized {
    fn link(&self) -> &ListLink<K, Self>;
}

/// Who is subscribed, the newest first.
///
/// On a line of its own: what everybody reads is written when somebody subscribes.
#[repr(align(64))]
pub(crate) struct List<K: NotifierKernel, N = Node<K>> {
    /// Whether anybody ever subscribed, a bit for each way: all that a change costs where nobody did.
    subscribed: K::AtomicUsize,
    first: K::AtomicPtr<N>,
    pub(crate) lock: K::Lock,
}

impl<K: NotifierKernel, N> Default for List<K, N> {
    fn default() -> Self {
        List { subscribed: AtomicWord::new(0), first: AtomicWord::new(null_mut()), lock: SpinLock::new() }
    }
}

impl<K: NotifierKernel, N: Listed<K>> List<K, N> {
    /// The ways in which anybody ever subscribed.
    #[inline]
    pub(crate) fn subscribed(&self) -> usize {
        if K::CONFIG_MMU_NOTIFIER { self.subscribed.load(Acquire) } else { 0 }
    }

    /// Somebody subscribes. Context: all locks held under which an invalidation can go on.
    pub(crate) fn subscribe(&self, how: usize) {
        self.subscribed.fetch_or(how, Release.at(SUBSCRIBED));
    }

    /// Whether nobody is in it now. Stale at once, unless its lock is held.
    pub(crate) fn is_empty(&self) -> bool {
        self.first.load(Relaxed).is_null()
    }

    /// The list, to a scheme of walks.
    fn id(&self) -> ChainId {
        ChainId(NonZero::new(core::ptr::from_ref(self).expose_provenance()).expect("a reference is not null"))
    }

    /// Runs `f` in a walk, if there is anybody in the list.
    pub(crate) fn walk(&self, kernel: K, f: impl FnOnce()) {
        if !self.is_empty() {
            self.in_walk(kernel, f);
        }
    }

    /// Runs `f` in a walk: what it finds of the list stays meanwhile.
    pub(crate) fn in_walk<R>(&self, kernel: K, f: impl FnOnce() -> R) -> R {
        let walk = kernel.walks().begin(kernel, self.id());
        let result = in_callback(kernel, f);
        kernel.walks().end(kernel, self.id(), walk);
        result
    }

    /// Waits for the walks that have begun. Context: may sleep, not in one.
    pub(crate) fn synchronize(&self, kernel: K) {
        kernel.might_sleep();
        if kernel.task().is_in_callback() {
            kernel.warn(Warning::WaitsForItself);
        }
        kernel.walks().synchronize(kernel, self.id());
    }

    /// Goes through the list until `f` gives something. Context: in a walk, or with the lock held; what is given is there as long.
    pub(crate) fn find<'a, R>(&'a self, mut f: impl FnMut(&'a N) -> Option<R>) -> Option<R> {
        let mut next = self.first.load(Acquire);
        while let Some(node) = NonNull::new(next) {
            // SAFETY: found in the list: it stays until the walk ends, or the lock is released.
            let node = unsafe { node.as_ref() };
            if let Some(result) = f(node) {
                return Some(result);
            }
            next = node.link().next.load(Acquire);
        }
        None
    }

    /// Goes through all of it. Context: as above.
    pub(crate) fn each(&self, mut f: impl FnMut(&N)) {
        self.find(|node| {
            f(node);
            None::<()>
        });
    }

    /// Puts a node at the head. Context: the lock held.
    pub(crate) fn link(&self, node: &N) {
        let link = node.link();
        let first = self.first.load(Relaxed);
        link.next.store(first, Relaxed);
        if let Some(first) = NonNull::new(first) {
            // SAFETY: in the list.
            unsafe { first.as_ref() }.link().pprev.store(core::ptr::from_ref(&link.next).cast_mut(), Relaxed);
        }
        link.pprev.store(core::ptr::from_ref(&self.first).cast_mut(), Relaxed);
        // Whoever finds it finds what was written into it.
        self.first.store(core::ptr::from_ref(node).cast_mut(), Release);
    }

    /// Takes it out, if it is in: whoever stands on it finds the rest of the list. Says whether it was. Context: the lock held.
    pub(crate) fn unlink(node: &N) -> bool {
        let Some(pprev) = NonNull::new(node.link().pprev.load(Relaxed)) else { return false };
        let next = node.link().next.load(Relaxed);
        // SAFETY: the word of a node in the list, or of the list.
        unsafe { pprev.as_ref() }.store(next, Release);
        if let Some(next) = NonNull::new(next) {
            // SAFETY: in the list.
            unsafe { next.as_ref() }.link().pprev.store(pprev.as_ptr(), Relaxed);
        }
        node.link().pprev.store(null_mut(), Relaxed);
        true
    }

    /// Takes out the first one. Context: the lock held.
    pub(crate) fn unlink_first(&self) -> Option<NonNull<N>> {
        let node = NonNull::new(self.first.load(Relaxed))?;
        // SAFETY: in the list, whose lock is held.
        Self::unlink(unsafe { node.as_ref() });
        Some(node)
    }
}

impl<K: NotifierKernel> List<K> {
    /// Tells everybody that an invalidation starts. Context: in a walk.
    ///
    /// # Errors
    /// If somebody refuses. All the others have been told all the same.
    pub(crate) fn start_each(&self, kernel: K, mm: &K::Mm, invalidation: Invalidation<'_>) -> Result<(), WouldBlock> {
        let start = |node: &Node<K>| {
            if let Some(one) = node.mirror() {
                one.invalidate_range_start(mm, invalidation);
            }
            node.refusing().map_or(Ok(()), |one| one.invalidate_range_start(mm, invalidation))
        };
        let mut started = Ok(());
        self.each(|node| {
            let result = without_blocking(kernel, invalidation.is_blockable(), || start(node));
            if result.is_err() && invalidation.is_blockable() {
                kernel.warn(Warning::RefusedBlockable);
            } else {
                started = started.and(result);
            }
        });
        started
    }

    /// Tells everybody that it ends. Context: in a walk.
    pub(crate) fn end_each(&self, kernel: K, mm: &K::Mm, invalidation: Invalidation<'_>) {
        self.each(|node| {
            if let Some(one) = node.mirror() {
                without_blocking(kernel, invalidation.is_blockable(), || one.invalidate_range_end(mm, invalidation));
            }
        });
    }
}

/// Runs callbacks, which must not sleep if they may not block.
pub(crate) fn without_blocking<K: NotifierKernel, R>(kernel: K, may_block: bool, f: impl FnOnce() -> R) -> R {
    if may_block {
        return f();
    }
    kernel.non_block_start();
    let result = f();
    kernel.non_block_end();
    result
}
