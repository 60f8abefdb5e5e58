//! Subscriptions that several share: an address space has one subscriber of a kind, which its first user subscribes, and its last one unsubscribes (Linux
//! `mmu_notifier_get` and `mmu_notifier_put`, 2c7933f53f6b, 5.4).
//!
//! Users go anywhere, in callbacks, too. The last one can hardly wait there, so a worker does what is left to do
//! ([`NotifierKernel::queue_work`]). In Linux the last one takes the subscriber out of the list, without a release: a driver must have dropped all its translations
//! before. Here it is released first, and is told of whatever changes until then; meanwhile nobody finds it any more, and whoever asks for one subscribes another.

use core::any::TypeId;
use core::fmt;
use core::mem::ManuallyDrop;
use core::ops::Deref;
use core::ptr::NonNull;

use lazytlb_core::mm::{ARef, AlwaysRefCounted};

use crate::chain::{MmapWrite, RegisterError};
use crate::kernel::{NotifierKernel, NotifierMm};
use crate::placed::Placed;
use crate::subscriber::{Contract, Mirror, Node, Refusing, SharedTables};

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

/// A user of a subscriber that its address space has once.
///
/// Dropped in process context, with no lock held that a callback takes, the last one waits for callbacks, and may drop the last reference to the mm's
/// struct. Dropped in a callback, it leaves that to a worker.
pub struct SharedSubscription<K, T>(NonNull<Placed<K, Node<K>, T>>)
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

impl<K, T> SharedSubscription<K, T>
where
    K: NotifierKernel<Mm: AlwaysRefCounted>,
{
    fn placed(&self) -> &Placed<K, Node<K>, T> {
        // SAFETY: there as long as it has users.
        unsafe { self.0.as_ref() }
    }

    /// The address space. Its users may be gone.
    pub fn mm(&self) -> &K::Mm {
        &self.placed().mm
    }

    fn kind() -> TypeId {
        TypeId::of::<Placed<K, Node<K>, T>>()
    }

    /// One more user of what is subscribed, if there is one.
    fn find(kernel: K, mmap: &impl MmapWrite<K>, is_it: fn(&Node<K>) -> bool) -> Result<Option<Self>, RegisterError> {
        let is_mine = |node: &Node<K>| is_it(node) && node.whole.is_some_and(|whole| (whole.kind)() == Self::kind());
        // SAFETY: what is of this kind goes with its last user.
        let found = unsafe { mmap.mm().notifiers().get(kernel, is_mine)? };
        // What is of this kind stands in such a place.
        Ok(found.and_then(|node| node.whole).map(|whole| SharedSubscription(whole.place.cast())))
    }

    /// Places a subscriber, and subscribes it.
    fn subscribe(
        kernel: K,
        mmap: &mut impl MmapWrite<K>,
        subscriber: T,
        contract: fn(NonNull<T>) -> Contract<K>,
    ) -> Result<Self, RegisterError> {
        let node = |place: NonNull<Placed<K, Node<K>, T>>, at| {
            // SAFETY: placed with the node, and given back when that has left the list.
            let mut node = unsafe { Node::new(contract(at)) };
            node.whole = Some(Whole { kind: Self::kind, place: place.cast() });
            node
        };
        let mm = ARef::from(mmap.mm());
        let placed = Placed::new(kernel, mm, subscriber, node, |placed: &Placed<K, Node<K>, T>| {
            // SAFETY: it stays until it has unsubscribed, and has a reference.
            unsafe { placed.mm.notifiers().register(kernel, mmap, &placed.node) }
        });
        placed.map(SharedSubscription).map_err(|(error, _)| error)
    }

    /// Gives this user back, and never waits: if it is the last one, a worker does. Context: any in which the chain's lock may be taken.
    pub fn put(self) {
        let this = ManuallyDrop::new(self);
        if this.is_last() {
            // SAFETY: the last user is gone, and nobody else ends it.
            unsafe { Placed::leave_to_worker(this.0) };
        }
    }

    /// Gives the user back, and says whether it was the last one: then nobody finds what it has used any more, and it is this one's to unsubscribe.
    fn is_last(&self) -> bool {
        let Placed { node, mm, kernel, .. } = self.placed();
        mm.notifiers().put_then(*kernel, node, || {})
    }
}

impl<K, T> Drop for SharedSubscription<K, T>
where
    K: NotifierKernel<Mm: AlwaysRefCounted>,
    T: 'static,
{
    fn drop(&mut self) {
        if self.is_last() {
            // SAFETY: the last user is gone, and nobody else ends it.
            unsafe { Placed::end_somehow(self.0) };
        }
    }
}

impl<K, T> Deref for SharedSubscription<K, T>
where
    K: NotifierKernel<Mm: AlwaysRefCounted>,
{
    type Target = T;

    fn deref(&self) -> &T {
        &self.placed().subscriber
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
