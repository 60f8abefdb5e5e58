//! Subscriptions that several share: an address space has one subscriber of a kind, which its first user subscribes, and its last one unsubscribes (Linux
//! `mmu_notifier_get` and `mmu_notifier_put`, 56c57103db23 and 2c7933f53f6b).
//!
//! Users go anywhere, in callbacks, too. The last one can hardly wait there, so a worker does what is left to do
//! ([`NotifierKernel::queue_work`]). In Linux the last one takes the subscriber out of the list, without a release: a driver must have dropped all its translations
//! before. Here it is released first, and is told of whatever changes until then; meanwhile nobody finds it any more, and whoever asks for one subscribes another.

use core::any::TypeId;
use core::fmt;
use core::ops::Deref;
use core::ptr::NonNull;

use lazytlb_core::mm::{ARef, AlwaysRefCounted};

use crate::chain::{Chain, MmapWrite, RegisterError};
use crate::kernel::{NotifierKernel, NotifierMm, Warning, Work};
use crate::list::is_in_callback;
use crate::subscriber::{Contract, Mirror, Node, Refusing, SharedTables};
use crate::subscription::Placed;

/// What a node is part of, where several share it: found by its type.
#[derive(Clone, Copy)]
pub(crate) struct Whole {
    /// [`TypeId::of`] its type.
    kind: fn() -> TypeId,
    place: NonNull<()>,
}

// SAFETY: an address. Who makes a pointer of it knows its type.
unsafe impl Send for Whole {}
// SAFETY: as above.
unsafe impl Sync for Whole {}

/// What several share. The subscriber goes before the mm does.
struct Shared<K: NotifierKernel<Mm: AlwaysRefCounted>, T> {
    subscriber: T,
    mm: ARef<K::Mm>,
    kernel: K,
}

type Place<K, T> = Placed<Node<K>, Shared<K, T>>;

/// A user of a subscriber that its address space has once.
///
/// Dropped in process context, with no lock held that a callback takes, the last one waits for callbacks, and may drop the last reference to the mm's
/// struct. Dropped in a callback, it leaves that to a worker.
pub struct SharedSubscription<K, T>(NonNull<Place<K, T>>)
where
    K: NotifierKernel<Mm: AlwaysRefCounted>,
    T: 'static;

// SAFETY: a user of what any CPU may call already.
unsafe impl<K, T: Send + Sync> Send for SharedSubscription<K, T> where
    K: NotifierKernel<Mm: AlwaysRefCounted + Send + Sync> + Send
{
}
// SAFETY: as above.
unsafe impl<K, T: Send + Sync> Sync for SharedSubscription<K, T> where
    K: NotifierKernel<Mm: AlwaysRefCounted + Send + Sync> + Sync
{
}

impl<K, T: fmt::Debug> fmt::Debug for SharedSubscription<K, T>
where
    K: NotifierKernel<Mm: AlwaysRefCounted>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SharedSubscription").field(&**self).finish()
    }
}

/// The chain of an address space whose lock is held, apart from the lock.
fn chain_of<'a, K: NotifierKernel>(mmap: &impl MmapWrite<K>) -> &'a Chain<K> {
    let chain = core::ptr::from_ref(mmap.mm().notifiers());
    // SAFETY: the mm's, which the callers use only as long as its lock is held.
    unsafe { &*chain }
}

impl<K, T> SharedSubscription<K, T>
where
    K: NotifierKernel<Mm: AlwaysRefCounted>,
{
    fn shared(&self) -> &Shared<K, T> {
        // SAFETY: there as long as it has users.
        &unsafe { self.0.as_ref() }.subscriber
    }

    /// The address space. Its users may be gone.
    pub fn mm(&self) -> &K::Mm {
        &self.shared().mm
    }

    /// One more user of what is subscribed, if there is one.
    fn find(kernel: K, mmap: &impl MmapWrite<K>, is_it: fn(&Node<K>) -> bool) -> Result<Option<Self>, RegisterError> {
        let is_mine = |node: &Node<K>| is_it(node) && node.whole.is_some_and(|whole| (whole.kind)() == Self::kind());
        let found = chain_of(mmap).get(kernel, is_mine)?;
        // What is of this kind stands in such a place.
        Ok(found.and_then(|node| node.whole).map(|whole| SharedSubscription(whole.place.cast())))
    }

    fn kind() -> TypeId {
        TypeId::of::<Place<K, T>>()
    }

    /// Places a subscriber, and subscribes it.
    fn subscribe(
        kernel: K,
        mmap: &mut impl MmapWrite<K>,
        subscriber: T,
        contract: fn(NonNull<T>) -> Contract<K>,
    ) -> Result<Self, RegisterError> {
        let shared = Shared { subscriber, mm: ARef::from(mmap.mm()), kernel };
        let node = |at: NonNull<Shared<K, T>>| {
            // SAFETY: a field of what was allocated.
            let at = unsafe { &raw mut (*at.as_ptr()).subscriber };
            // SAFETY: the same.
            let at = unsafe { NonNull::new_unchecked(at) };
            // SAFETY: placed with the node, and freed when that has left the list.
            unsafe { Node::new(contract(at)) }
        };
        let place = Placed::new(shared, node).map_err(|(error, _)| error)?;
        // SAFETY: placed above, and nobody has seen it.
        unsafe { (*place.as_ptr()).node.whole = Some(Whole { kind: Self::kind, place: place.cast() }) };
        // SAFETY: likewise.
        let node = &unsafe { place.as_ref() }.node;
        // SAFETY: the place stays until it has unsubscribed, and has a reference.
        match unsafe { chain_of(mmap).register(kernel, mmap, node) } {
            Ok(()) => Ok(SharedSubscription(place)),
            Err(error) => {
                // SAFETY: nobody has seen it.
                drop(unsafe { Placed::take(place) });
                Err(error)
            }
        }
    }

    /// Gives this user back, and never waits: if it is the last one, a worker does. Context: any in which the chain's lock may be taken.
    pub fn put(self) {
        if self.is_last() {
            self.leave_to_worker();
        }
        core::mem::forget(self);
    }

    /// Gives the user back, and says whether it was the last one: then nobody finds what it has used any more, and it is this one's to unsubscribe.
    fn is_last(&self) -> bool {
        let Shared { mm, kernel, .. } = self.shared();
        // SAFETY: there as long as it has users.
        mm.notifiers().put_then(*kernel, &unsafe { self.0.as_ref() }.node, || {})
    }

    fn leave_to_worker(&self) {
        let kernel = self.shared().kernel;
        // SAFETY: the last user is gone, and nobody else ends it.
        let work = unsafe { Work::new(self.0.cast(), Self::end) };
        if kernel.queue_work(work).is_err() {
            kernel.warn(Warning::DroppedInCallback);
        }
    }

    /// Unsubscribes, waits for callbacks, and frees. Where this is a callback it stays, and is warned of.
    ///
    /// # Safety
    /// Of a place without users, once.
    unsafe fn end(place: NonNull<()>) {
        let place: NonNull<Place<K, T>> = place.cast();
        // SAFETY: the caller's promise.
        let Placed { node, subscriber: Shared { mm, kernel, .. } } = unsafe { place.as_ref() };
        // SAFETY: the caller's promise; the chain is the mm's.
        match unsafe { mm.notifiers().unregister(*kernel, mm, node) } {
            // SAFETY: unsubscribed.
            Ok(()) => drop(unsafe { Placed::take(place) }),
            Err(_) => kernel.warn(Warning::DroppedInCallback),
        }
    }
}

impl<K, T> Drop for SharedSubscription<K, T>
where
    K: NotifierKernel<Mm: AlwaysRefCounted>,
    T: 'static,
{
    fn drop(&mut self) {
        if !self.is_last() {
            return;
        }
        if is_in_callback(self.shared().kernel) {
            self.leave_to_worker();
        } else {
            // SAFETY: the last user is gone, and nobody else ends it.
            unsafe { Self::end(self.0.cast()) }
        }
    }
}

impl<K, T> Deref for SharedSubscription<K, T>
where
    K: NotifierKernel<Mm: AlwaysRefCounted>,
{
    type Target = T;

    fn deref(&self) -> &T {
        &self.shared().subscriber
    }
}

macro_rules! shares {
    ($(#[$doc:meta])* $name:ident, $contract:ident) => {
        impl<K, T> SharedSubscription<K, T>
        where
            K: NotifierKernel<Mm: AlwaysRefCounted>,
            T: $contract<K> + Send + Sync + 'static,
        {
            $(#[$doc])*
            /// One of the same type, and with the same contract, is used if the address space has it; else `make` makes it.
            ///
            /// Context: may sleep; the mmap lock is held for writing.
            ///
            /// # Errors
            /// See [`RegisterError`].
            pub fn $name(
                kernel: K,
                mmap: &mut impl MmapWrite<K>,
                make: impl FnOnce() -> T,
            ) -> Result<Self, RegisterError> {
                match Self::find(kernel, mmap, |node| matches!(node.contract(), Contract::$contract(_)))? {
                    Some(found) => Ok(found),
                    None => Self::subscribe(kernel, mmap, make(), |at| Contract::$contract(at)),
                }
            }
        }
    };
}

shares!(
    /// A user of who mirrors page tables.
    mirror, Mirror
);
shares!(
    /// A user of who may refuse what must not block.
    refusing, Refusing
);
shares!(
    /// A user of who walks the CPUs' tables.
    shared_tables, SharedTables
);
