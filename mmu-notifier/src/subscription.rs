//! Subscriptions that own what they need: the way in without `unsafe`.
//!
//! A [`Subscription`] has its subscriber in memory of its own, and a reference to the mm's struct (`mm_count`, as `mmgrab` takes it: the struct stays,
//! its users may go). Dropped, it unsubscribes first, then gives the memory back, then the reference: no order is left to get wrong. An
//! [`IntervalSubscription`] likewise, and what is looked up for it is used by way of a [`ReadTicket`] or not at all.
//!
//! Callbacks are given neither. One that gets at its own all the same, by way of a static, and drops it would wait for itself: it stays subscribed, and
//! is warned of ([`Warning::DroppedInCallback`]). What can be given back in a callback is a user of a [shared subscription](crate::SharedSubscription).

use alloc::alloc::alloc;
use alloc::boxed::Box;
use core::alloc::Layout;
use core::fmt;
use core::mem::ManuallyDrop;
use core::ops::Deref;
use core::ptr::NonNull;

use lazytlb_core::mm::{ARef, AlwaysRefCounted};

use crate::chain::{MmapWrite, RegisterError, UnregisterError};
use crate::interval::{IntervalNode, MmuIntervalNotifier};
use crate::kernel::{NotifierKernel, NotifierMm, Warning};
use crate::subscriber::{Contract, Mirror, Node, Refusing, SharedTables};

/// A place in a chain: [`Node`], in the list, or [`IntervalNode`], in the tree.
pub trait Place<K: NotifierKernel>: sealed::Place<K> {}

mod sealed {
    use crate::chain::UnregisterError;
    use crate::kernel::NotifierKernel;

    pub trait Place<K: NotifierKernel> {
        /// Unsubscribes, and waits until no callback runs.
        ///
        /// # Safety
        /// Nobody else unsubscribes it at the same time.
        unsafe fn leave(&self, kernel: K, mm: &K::Mm) -> Result<(), UnregisterError>;
    }
}

impl<K: NotifierKernel> Place<K> for Node<K> {}

impl<K: NotifierKernel> sealed::Place<K> for Node<K> {
    unsafe fn leave(&self, kernel: K, mm: &K::Mm) -> Result<(), UnregisterError> {
        // SAFETY: the caller's promise; the chain is the mm's.
        unsafe { mm.notifiers().unregister(kernel, mm, self) }
    }
}

impl<K: NotifierKernel> Place<K> for IntervalNode<K> {}

impl<K: NotifierKernel> sealed::Place<K> for IntervalNode<K> {
    unsafe fn leave(&self, kernel: K, mm: &K::Mm) -> Result<(), UnregisterError> {
        // SAFETY: as above.
        unsafe { mm.notifiers().remove_interval(kernel, mm, self) }
    }
}

/// A subscriber and its node.
pub(crate) struct Placed<N, T> {
    pub(crate) node: N,
    pub(crate) subscriber: T,
}

impl<N, T> Placed<N, T> {
    /// Places a subscriber, and a node that is made of where it is.
    ///
    /// # Errors
    /// If there is no memory.
    pub(crate) fn new(subscriber: T, node: impl FnOnce(NonNull<T>) -> N) -> Result<NonNull<Self>, (RegisterError, T)> {
        const { assert!(size_of::<N>() != 0, "a node has words") };
        // SAFETY: not of size zero.
        let memory = unsafe { alloc(Layout::new::<Self>()) };
        let Some(place) = NonNull::new(memory.cast::<Self>()) else {
            return Err((RegisterError::NoMemory, subscriber));
        };
        // SAFETY: a field of what was allocated.
        let at = unsafe { &raw mut (*place.as_ptr()).subscriber };
        // SAFETY: the same.
        let at = unsafe { NonNull::new_unchecked(at) };
        let node = node(at);
        // SAFETY: allocated for it, and nobody else's.
        unsafe { place.write(Placed { node, subscriber }) };
        Ok(place)
    }

    /// Gives the memory back.
    ///
    /// # Safety
    /// From [`new`](Self::new), and not given back before; nobody uses it any more.
    pub(crate) unsafe fn take(place: NonNull<Self>) -> T {
        // SAFETY: allocated as a box is, and the caller's.
        unsafe { Box::from_raw(place.as_ptr()) }.subscriber
    }
}

/// A subscriber that is subscribed as long as this is there.
///
/// It is dropped in process context, with no lock held that a callback takes: that waits for callbacks, and may drop the last reference to the mm's struct.
pub struct Subscription<K, T, N = Node<K>>
where
    K: NotifierKernel<Mm: AlwaysRefCounted>,
    N: Place<K>,
{
    kernel: K,
    mm: ARef<K::Mm>,
    placed: NonNull<Placed<N, T>>,
}

/// A subscriber to some addresses.
pub type IntervalSubscription<K, T> = Subscription<K, T, IntervalNode<K>>;

// SAFETY: it owns a subscriber, which any CPU may call already, and a reference.
unsafe impl<K, T: Send + Sync, N: Place<K>> Send for Subscription<K, T, N> where
    K: NotifierKernel<Mm: AlwaysRefCounted + Send + Sync> + Send
{
}
// SAFETY: as above.
unsafe impl<K, T: Send + Sync, N: Place<K>> Sync for Subscription<K, T, N> where
    K: NotifierKernel<Mm: AlwaysRefCounted + Send + Sync> + Sync
{
}

impl<K, T, N> fmt::Debug for Subscription<K, T, N>
where
    K: NotifierKernel<Mm: AlwaysRefCounted>,
    T: fmt::Debug,
    N: Place<K>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Subscription").field(&**self).finish()
    }
}

impl<K, T, N> Subscription<K, T, N>
where
    K: NotifierKernel<Mm: AlwaysRefCounted>,
    N: Place<K>,
{
    /// Places a subscriber, and subscribes it.
    fn new<M: MmapWrite<K>>(
        kernel: K,
        mmap: &mut M,
        subscriber: T,
        node: impl FnOnce(NonNull<T>) -> N,
        subscribe: impl FnOnce(&mut M, &N) -> Result<(), RegisterError>,
    ) -> Result<Self, (RegisterError, T)> {
        let placed = Placed::new(subscriber, node)?;
        // SAFETY: placed above.
        let node = &unsafe { placed.as_ref() }.node;
        match subscribe(mmap, node) {
            Ok(()) => Ok(Subscription { kernel, mm: ARef::from(mmap.mm()), placed }),
            // SAFETY: placed above, and nobody has seen it.
            Err(error) => Err((error, unsafe { Placed::take(placed) })),
        }
    }

    fn node(&self) -> &N {
        // SAFETY: it is there as long as this is.
        &unsafe { self.placed.as_ref() }.node
    }

    /// The address space. Its users may be gone.
    pub fn mm(&self) -> &K::Mm {
        &self.mm
    }

    /// Unsubscribes, and gives the subscriber back. Context: as for dropping.
    ///
    /// # Errors
    /// In a callback ([`UnregisterError::InCallback`]): it stays subscribed.
    pub fn unsubscribe(self) -> Result<T, (UnregisterError, Self)> {
        // SAFETY: who owns the subscription is the only one who can.
        if let Err(error) = unsafe { self.node().leave(self.kernel, &self.mm) } {
            return Err((error, self));
        }
        let left = ManuallyDrop::new(self);
        // SAFETY: unsubscribed, and not dropped.
        let subscriber = unsafe { Placed::take(left.placed) };
        // SAFETY: read once, of what is not dropped.
        drop(unsafe { core::ptr::read(&raw const left.mm) });
        Ok(subscriber)
    }
}

impl<K, T, N> Drop for Subscription<K, T, N>
where
    K: NotifierKernel<Mm: AlwaysRefCounted>,
    N: Place<K>,
{
    fn drop(&mut self) {
        // SAFETY: who drops it is the only one who can.
        match unsafe { self.node().leave(self.kernel, &self.mm) } {
            // SAFETY: unsubscribed, and dropped once.
            Ok(()) => drop(unsafe { Placed::take(self.placed) }),
            // Whoever may still be called is not freed, nor is the mm that it is subscribed to.
            Err(_) => {
                self.kernel.warn(Warning::DroppedInCallback);
                core::mem::forget(self.mm.clone());
            }
        }
    }
}

impl<K, T, N> Deref for Subscription<K, T, N>
where
    K: NotifierKernel<Mm: AlwaysRefCounted>,
    N: Place<K>,
{
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: it is there as long as this is.
        &unsafe { self.placed.as_ref() }.subscriber
    }
}

/// What [`Subscription`] asks of a subscriber: any CPU may call it, for as long as it takes.
macro_rules! subscribes {
    ($(#[$doc:meta])* $name:ident, $contract:ident) => {
        impl<K, T> Subscription<K, T>
        where
            K: NotifierKernel<Mm: AlwaysRefCounted>,
            T: $contract<K> + Send + Sync + 'static,
        {
            $(#[$doc])*
            ///
            /// Context: may sleep; the mmap lock is held for writing.
            ///
            /// # Errors
            /// See [`RegisterError`]. The subscriber is given back.
            pub fn $name(kernel: K, mmap: &mut impl MmapWrite<K>, subscriber: T) -> Result<Self, (RegisterError, T)> {
                // SAFETY: placed with the node, and given back when that has left the list.
                let node = |at: NonNull<T>| unsafe { Node::new(Contract::$contract(at)) };
                Self::new(kernel, mmap, subscriber, node, |mmap, node| {
                    let chain = core::ptr::from_ref(mmap.mm().notifiers());
                    // SAFETY: the mm's, whose lock is held.
                    let chain = unsafe { &*chain };
                    // SAFETY: the subscription owns both, and a reference.
                    unsafe { chain.register(kernel, mmap, node) }
                })
            }
        }
    };
}

subscribes!(
    /// Subscribes who mirrors page tables.
    mirror, Mirror
);
subscribes!(
    /// Subscribes who may refuse what must not block.
    refusing, Refusing
);
subscribes!(
    /// Subscribes who walks the CPUs' tables.
    shared_tables, SharedTables
);

impl<K, T> IntervalSubscription<K, T>
where
    K: NotifierKernel<Mm: AlwaysRefCounted>,
    T: MmuIntervalNotifier<K> + Send + Sync + 'static,
{
    /// Subscribes to so many addresses from one on.
    ///
    /// Context: may sleep; the mmap lock is held for writing.
    ///
    /// # Errors
    /// See [`RegisterError`]. The subscriber is given back.
    pub fn interval(
        kernel: K,
        mmap: &mut impl MmapWrite<K>,
        subscriber: T,
        start: usize,
        length: usize,
    ) -> Result<Self, (RegisterError, T)> {
        // SAFETY: placed with the node, and given back when that has left the tree.
        let node = |at: NonNull<T>| unsafe { IntervalNode::new(at) };
        Self::new(kernel, mmap, subscriber, node, |mmap, node| {
            let chain = core::ptr::from_ref(mmap.mm().notifiers());
            // SAFETY: the mm's, whose lock is held.
            let chain = unsafe { &*chain };
            // SAFETY: the subscription owns both, and a reference.
            unsafe { chain.insert_interval(kernel, mmap, node, start, length) }
        })
    }

    /// Begins to look something up ([`Chain::read_begin`](crate::Chain::read_begin)): waits until no invalidation goes on that this subscriber was told of.
    ///
    /// Context: may sleep; no lock held that the callback takes.
    pub fn read_begin(&self) -> ReadTicket<'_, K> {
        let node = self.node();
        ReadTicket { node, seq: self.mm.notifiers().read_begin(self.kernel, node) }
    }
}

/// Something was looked up since [`read_begin`](IntervalSubscription::read_begin).
#[derive(Debug)]
#[must_use = "what was looked up may be used by it only"]
pub struct ReadTicket<'a, K: NotifierKernel> {
    node: &'a IntervalNode<K>,
    seq: usize,
}

impl<K: NotifierKernel> ReadTicket<'_, K> {
    /// Makes a translation of what was looked up, if it is still so. `state` is what the subscriber's lock guards, the one under which its callback stores
    /// its sequence: who can change it holds that lock, until the translation is made.
    ///
    /// # Errors
    /// If it may have been invalidated: then it is looked up again.
    pub fn install<S: ?Sized, R>(self, state: &mut S, f: impl FnOnce(&mut S) -> R) -> Result<R, Retry> {
        if self.node.read_retry(self.seq) { Err(Retry) } else { Ok(f(state)) }
    }
}

/// What was looked up may have been invalidated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Retry;

impl fmt::Display for Retry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("what was looked up may have been invalidated")
    }
}

impl core::error::Error for Retry {}
