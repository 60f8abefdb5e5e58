//! A subscriber in memory of its own, with its node and what it needs: what subscriptions own.

use alloc::alloc::alloc;
use alloc::boxed::Box;
use core::alloc::Layout;
use core::ptr::NonNull;

use lazytlb_core::mm::{ARef, AlwaysRefCounted};

use crate::chain::{RegisterError, UnregisterError};
use crate::interval::IntervalNode;
use crate::kernel::{NotifierKernel, NotifierMm, Warning, Work};
use crate::subscriber::Node;

/// A place in a chain: [`Node`], in the list, or [`IntervalNode`], in the tree.
pub trait Place<K: NotifierKernel>: sealed::Place<K> {}

mod sealed {
    use crate::chain::UnregisterError;
    use crate::kernel::NotifierKernel;

    pub trait Place<K: NotifierKernel>: 'static {
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

/// A subscriber, its node, and the mm, which goes last.
pub(crate) struct Placed<K: NotifierKernel<Mm: AlwaysRefCounted>, N, T> {
    pub(crate) node: N,
    pub(crate) subscriber: T,
    pub(crate) mm: ARef<K::Mm>,
    pub(crate) kernel: K,
}

impl<K, N, T> Placed<K, N, T>
where
    K: NotifierKernel<Mm: AlwaysRefCounted>,
    N: Place<K>,
{
    /// Places a subscriber, and a node that is made of where all of it is and where the subscriber is; and subscribes it.
    ///
    /// # Errors
    /// If there is no memory, or `subscribe` says so. The subscriber is given back.
    pub(crate) fn new(
        kernel: K,
        mm: ARef<K::Mm>,
        subscriber: T,
        node: impl FnOnce(NonNull<Self>, NonNull<T>) -> N,
        subscribe: impl FnOnce(&Self) -> Result<(), RegisterError>,
    ) -> Result<NonNull<Self>, (RegisterError, T)> {
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
        let node = node(place, at);
        // SAFETY: allocated for it, and nobody else's.
        unsafe { place.write(Placed { node, subscriber, mm, kernel }) };
        // SAFETY: written above.
        match subscribe(unsafe { place.as_ref() }) {
            Ok(()) => Ok(place),
            // SAFETY: placed above, and nobody has seen it.
            Err(error) => Err((error, unsafe { Self::take(place) })),
        }
    }

    /// Gives the memory and the reference back.
    ///
    /// # Safety
    /// From [`new`](Self::new), and not given back before; nobody uses it any more.
    unsafe fn take(place: NonNull<Self>) -> T {
        // SAFETY: allocated as a box is, and the caller's.
        let placed = unsafe { Box::from_raw(place.as_ptr()) };
        placed.subscriber
    }

    /// Unsubscribes, waits for callbacks, and frees. Context: may sleep, with no lock held that a callback takes.
    ///
    /// # Errors
    /// Where it would wait for its caller. It stays then.
    ///
    /// # Safety
    /// From [`new`](Self::new); nobody else uses or ends it, and nobody does behind this call if it succeeds.
    pub(crate) unsafe fn end(place: NonNull<Self>) -> Result<T, UnregisterError> {
        // SAFETY: the caller's promise.
        let Placed { node, mm, kernel, .. } = unsafe { place.as_ref() };
        // SAFETY: the caller's promise.
        unsafe { node.leave(*kernel, mm)? };
        // SAFETY: nobody finds it any more.
        Ok(unsafe { Self::take(place) })
    }

    /// The same, from anywhere: where it would wait for its caller a worker does it.
    ///
    /// # Safety
    /// As [`end`](Self::end), and nobody uses it behind this call.
    pub(crate) unsafe fn end_somehow(place: NonNull<Self>) {
        // SAFETY: the caller's promise.
        if unsafe { Self::end(place) }.is_err() {
            // SAFETY: the caller's promise; it has stayed.
            unsafe { Self::leave_to_worker(place) };
        }
    }

    /// A worker unsubscribes it. If there is none it stays, with the mm that it is subscribed to, and is warned of.
    ///
    /// # Safety
    /// As [`end_somehow`](Self::end_somehow).
    pub(crate) unsafe fn leave_to_worker(place: NonNull<Self>) {
        // SAFETY: the caller's promise.
        let kernel = unsafe { place.as_ref() }.kernel;
        // SAFETY: the caller's promise.
        let work = unsafe { Work::new(place.cast(), Self::end_in_worker) };
        if kernel.queue_work(work).is_err() {
            kernel.warn(Warning::NotUnsubscribed);
        }
    }

    /// # Safety
    /// As [`end_somehow`](Self::end_somehow).
    unsafe fn end_in_worker(place: NonNull<()>) {
        let place: NonNull<Self> = place.cast();
        // SAFETY: the caller's promise.
        let kernel = unsafe { place.as_ref() }.kernel;
        // SAFETY: the caller's promise.
        if unsafe { Self::end(place) }.is_err() {
            kernel.warn(Warning::NotUnsubscribed);
        }
    }
}
