//! The second class of February 2008: who keeps reverse maps of its own is told of pages, with no lock of the kernel's held.
//!
//! XPMEM sends messages to other kernels to drop a mapping, so it must sleep, and it knows by itself who maps a page. There is one list for all address
//! spaces. A flag of each page says whether anybody maps it beside the CPUs, so that reclaim does not call out for every page: it is set where a page is
//! exported, and cleared where all have dropped it; the page's lock is held meanwhile (Holt, in the review: two drivers may have exported it, and
//! neither can know when to clear it).
//!
//! It was dropped, and rightly (Piggin, in the review): between the CPUs' entry and a driver's, a fault may map, and even export, another page at the same
//! address, and who is told of pages cannot hold that off. A model finds it (`lazytlb litmus rmap-truncate`). It is here to be compared.
//!
//! Source: patch 5 of Lameter's posting of 15 February 2008, and its review.

use core::fmt;
use core::ptr::NonNull;

use crate::chain::UnregisterError;
use crate::former::Form;
use crate::kernel::{NotifierKernel, locked};
use crate::list::{List, ListLink, Listed, without_blocking};

/// A page of the kernel's, with a flag.
pub trait RmapPage {
    /// Whether somebody maps it beside the CPUs (`PageExternalRmap`). Context: the page's lock held.
    fn external_rmap(&self) -> bool;

    /// Sets the flag, or clears it. Context: the page's lock held.
    fn set_external_rmap(&self, exported: bool);
}

/// A page stays mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CannotEvict;

impl fmt::Display for CannotEvict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a driver cannot drop its mappings of a page now")
    }
}

impl core::error::Error for CannotEvict {}

/// Who keeps reverse maps of its own.
///
/// Context of both: may sleep; the page's lock and a reference to it are held, and no spinlock. It may be reclaim that calls: to allocate is to wait for
/// oneself.
pub trait MmuRmapNotifier<P> {
    /// Drops all mappings of a page, so that it can be reclaimed.
    ///
    /// # Errors
    /// If it cannot now: the page is not reclaimed.
    fn try_invalidate_page(&self, page: &P) -> Result<(), CannotEvict>;

    /// Drops all mappings of a page: they are written through no more, and somebody relies on that.
    fn invalidate_page(&self, page: &P);
}

/// The place of a subscriber in the list.
pub struct RmapNode<K: NotifierKernel, P> {
    link: ListLink<K, RmapNode<K, P>>,
    subscriber: Subscriber<P>,
}

/// A subscriber, whom any CPU may call.
struct Subscriber<P>(NonNull<dyn MmuRmapNotifier<P>>);

// SAFETY: a pointer. Who calls what it points to does so by the promise of `RmapNode::new`.
unsafe impl<P> Send for Subscriber<P> {}
// SAFETY: as above.
unsafe impl<P> Sync for Subscriber<P> {}

// SAFETY: it is a field.
unsafe impl<K: NotifierKernel, P> Listed<K> for RmapNode<K, P> {
    fn link(&self) -> &ListLink<K, Self> {
        &self.link
    }
}

impl<K: NotifierKernel, P> fmt::Debug for RmapNode<K, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RmapNode")
    }
}

impl<K: NotifierKernel, P> RmapNode<K, P> {
    /// A subscriber's, which is in no list yet.
    ///
    /// # Safety
    /// The subscriber is there as long as the node is in a list, or a walk may have found it there. Any CPU may call it.
    pub unsafe fn new(subscriber: NonNull<dyn MmuRmapNotifier<P>>) -> Self {
        RmapNode { link: ListLink::default(), subscriber: Subscriber(subscriber) }
    }

    fn subscriber(&self) -> &dyn MmuRmapNotifier<P> {
        // SAFETY: by the contract of `new`; who has a node has it from the list, in a walk.
        unsafe { self.subscriber.0.as_ref() }
    }
}

/// The list of all who keep reverse maps.
pub struct RmapChain<K: NotifierKernel, P> {
    list: List<K, RmapNode<K, P>>,
    form: Form,
}

impl<K: NotifierKernel, P> fmt::Debug for RmapChain<K, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RmapChain")
    }
}

impl<K: NotifierKernel, P: RmapPage> RmapChain<K, P> {
    /// Nobody is in it. Of the form it has whether walks let callbacks sleep (posted, they were RCU's and did not: the class never worked), and whether
    /// unregistering waits.
    pub fn new(form: Form) -> Self {
        RmapChain { list: List::default(), form }
    }

    /// Puts a subscriber in (`mmu_rmap_notifier_register`).
    ///
    /// # Safety
    /// The node is in no list, and stays where it is until [`unregister`](Self::unregister) has returned.
    pub unsafe fn register(&self, kernel: K, node: &RmapNode<K, P>) {
        locked(kernel, &self.list.lock, || self.list.link(node));
    }

    /// Takes it out, and waits until no callback runs. It has dropped all its mappings before. Context: may sleep, not in a callback.
    ///
    /// # Errors
    /// In a callback, or if it is not in the list.
    ///
    /// # Safety
    /// If it is in a list it is in this one.
    pub unsafe fn unregister(&self, kernel: K, node: &RmapNode<K, P>) -> Result<(), UnregisterError> {
        if kernel.task().is_in_callback() {
            return Err(UnregisterError::InCallback);
        }
        if !locked(kernel, &self.list.lock, || List::unlink(node)) {
            return Err(UnregisterError::NotRegistered);
        }
        if self.form.waits {
            self.list.synchronize(kernel);
        }
        Ok(())
    }

    /// A driver is about to map a page (`mmu_rmap_export_page`). Context: the page's lock held, until it is in the driver's reverse map.
    pub fn export_page(&self, page: &P) {
        page.set_external_rmap(true);
    }

    /// Everybody drops a page, so that it can be reclaimed (in `try_to_unmap`). Context: as for [`MmuRmapNotifier`].
    ///
    /// # Errors
    /// If somebody cannot. Those that were asked before have dropped it.
    pub fn try_to_unmap(&self, kernel: K, page: &P) -> Result<(), CannotEvict> {
        if !page.external_rmap() {
            return Ok(());
        }
        let refused = self.in_walk(kernel, || self.list.find(|node| node.subscriber().try_invalidate_page(page).err()));
        match refused {
            Some(CannotEvict) => Err(CannotEvict),
            None => {
                page.set_external_rmap(false);
                Ok(())
            }
        }
    }

    /// Everybody drops a page that is about to be write-protected (in `page_mkclean`): nobody can refuse. Context: as for [`MmuRmapNotifier`].
    pub fn page_mkclean(&self, kernel: K, page: &P) {
        if page.external_rmap() {
            self.in_walk(kernel, || self.list.each(|node| node.subscriber().invalidate_page(page)));
            page.set_external_rmap(false);
        }
    }

    fn in_walk<R>(&self, kernel: K, f: impl FnOnce() -> R) -> R {
        self.list.in_walk(kernel, || without_blocking(kernel, self.form.walks_sleep, f))
    }
}
