//! Subscriptions that own what they need: the way in without `unsafe`.
//!
//! A [`Subscription`] has its subscriber in memory of its own, and a reference to the mm's struct (`mm_count`, as `mmgrab` takes it: the struct stays,
//! its users may go). Dropped, it unsubscribes first, then gives the memory back, then the reference: no order is left to get wrong. An
//! [`IntervalSubscription`] likewise, and what is looked up for it is used by way of a [`ReadTicket`] or not at all.
//!
//! Callbacks are given neither. One that gets at its own all the same, by way of a static, and drops it would wait for itself, as would who drops an interval's
//! between the start and the end of an invalidation: a worker of the kernel's does it ([`NotifierKernel::queue_work`]). Where there is none it stays subscribed, and is warned of
//! ([`Warning::NotUnsubscribed`](crate::Warning::NotUnsubscribed)).

use core::fmt;
use core::mem::ManuallyDrop;
use core::ops::Deref;
use core::ptr::NonNull;

use lazytlb_core::mm::{ARef, AlwaysRefCounted};

use crate::chain::{MmapWrite, RegisterError, UnregisterError};
use crate::interval::{IntervalNode, MmuIntervalNotifier};
use crate::kernel::{NotifierKernel, NotifierMm};
use crate::placed::Placed;
use crate::subscriber::{Contract, Mirror, Node, Refusing, SharedTables};

pub use crate::placed::Place;

/// A subscriber that is subscribed as long as this is there.
///
/// It is dropped in process context, with no lock held that a callback takes: that waits for callbacks, and may drop the last reference to the mm's struct.
/// Dropped in a callback, it leaves that to a worker.
pub struct Subscription<K, T, N = Node<K>>(NonNull<Placed<K, N, T>>)
where
    K: NotifierKernel<Mm: AlwaysRefCounted>,
    N: Place<K>;

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
    fn placed(&self) -> &Placed<K, N, T> {
        // SAFETY: it is there as long as this is.
        unsafe { self.0.as_ref() }
    }

    /// The address space. Its users may be gone.
    pub fn mm(&self) -> &K::Mm {
        &self.placed().mm
    }

    /// Unsubscribes, and gives the subscriber back. Context: as for dropping, and not in a callback.
    ///
    /// # Errors
    /// Where it would wait for its caller (see [`UnregisterError`]): it stays subscribed.
    pub fn unsubscribe(self) -> Result<T, (UnregisterError, Self)> {
        let this = ManuallyDrop::new(self);
        // SAFETY: who owns the subscription is the only one who can, and does not drop it.
        unsafe { Placed::end(this.0) }.map_err(|error| (error, ManuallyDrop::into_inner(this)))
    }
}

impl<K, T, N> Drop for Subscription<K, T, N>
where
    K: NotifierKernel<Mm: AlwaysRefCounted>,
    N: Place<K>,
{
    fn drop(&mut self) {
        // SAFETY: who drops it is the only one who can.
        unsafe { Placed::end_somehow(self.0) }
    }
}

impl<K, T, N> Deref for Subscription<K, T, N>
where
    K: NotifierKernel<Mm: AlwaysRefCounted>,
    N: Place<K>,
{
    type Target = T;

    fn deref(&self) -> &T {
        &self.placed().subscriber
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
                let node = |_, at: NonNull<T>| unsafe { Node::new(Contract::$contract(at)) };
                let mm = ARef::from(mmap.mm());
                let placed = Placed::new(kernel, mm, subscriber, node, |placed: &Placed<K, Node<K>, T>| {
                    // SAFETY: the subscription owns both, and a reference.
                    unsafe { placed.mm.notifiers().register(kernel, mmap, &placed.node) }
                });
                placed.map(Subscription)
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
        let node = |_, at: NonNull<T>| unsafe { IntervalNode::new(at) };
        let mm = ARef::from(mmap.mm());
        let placed = Placed::new(kernel, mm, subscriber, node, |placed: &Placed<K, IntervalNode<K>, T>| {
            // SAFETY: the subscription owns both, and a reference.
            unsafe { placed.mm.notifiers().insert_interval(kernel, mmap, &placed.node, start, length) }
        });
        placed.map(Subscription)
    }

    /// Begins to look something up ([`Chain::read_begin`](crate::Chain::read_begin)): waits until no invalidation goes on that this subscriber was told of.
    ///
    /// Context: may sleep; no lock held that the callback takes.
    pub fn read_begin(&self) -> ReadTicket<'_, K> {
        let Placed { node, mm, kernel, .. } = self.placed();
        ReadTicket { node, seq: mm.notifiers().read_begin(*kernel, node) }
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
