//! The list as it was: from the posting of February 2008 to Linux 4.19.
//!
//! | form | registration | an end of the address space | unsubscribing | callbacks |
//! | --- | --- | --- | --- | --- |
//! | [`POSTED`](Form::POSTED) | takes no lock but the mmap lock | unlinks, then releases | unlinks, and neither releases nor waits | told that they may sleep, and under RCU |
//! | [`REVIEWED`](Form::REVIEWED) | takes all locks | releases, then unlinks | releases, unlinks what is linked, and waits | may sleep |
//! | [`V2_6_27`](Form::V2_6_27) | takes all locks | unlinks, then releases | unlinks what is linked, releases, waits | under RCU |
//! | [`V3_6`](Form::V3_6) | takes all locks | releases, then unlinks | releases, unlinks whether it is linked or not, waits | under RCU |
//! | [`V3_9`](Form::V3_9) | takes all locks | unlinks, then releases | unlinks what is linked, releases, waits | may sleep |
//! | [`V3_10`](Form::V3_10) | takes all locks | releases, then unlinks | releases, unlinks what is linked, waits | may sleep |
//! | [`V4_19`](Form::V4_19) | the same | the same | the same | may refuse: nobody else is told of an end then |
//!
//! Since 5.12 it is [`Chain`](crate::Chain)'s. These are here to be compared, and to be seen fail; a kernel has no use for them.
//!
//! Source: Lameter's posting of 8 February 2008 and its review; Arcangeli's cddb8a5c14aa (2.6.27); 3ad3d901bbcf (3.6); 751efd8610d3 (3.9);
//! d34883d4e35c (3.10); 93065ac753e4 (4.19).

use core::fmt;

use lazytlb_core::memory::{AtomicWord, Ordering::*};

use crate::chain::{MmapWrite, RegisterError, UnregisterError};
use crate::kernel::{NotifierKernel, Warning, locked};
use crate::list::{LIST, List, without_blocking};
use crate::range::{Invalidation, Range, WouldBlock};
use crate::subscriber::Node;

/// In what the forms differ. Each can be had with one thing changed: a mutation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Form {
    /// Registration takes all locks under which an invalidation can go on.
    pub registers_alone: bool,
    /// A subscriber is released before it is unlinked; else behind that.
    pub releases_first: bool,
    /// Unsubscribing unlinks only what is linked.
    pub unlinks_once: bool,
    /// Unsubscribing releases the subscriber.
    pub releases: bool,
    /// Unsubscribing and the end of the address space wait for callbacks.
    pub waits: bool,
    /// Callbacks are told that they may sleep.
    pub callbacks_sleep: bool,
    /// Walks let them: they are more than RCU's.
    pub walks_sleep: bool,
    /// If somebody refuses the others are told of the end.
    pub unwinds: bool,
}

impl Form {
    /// As posted on 8 February 2008.
    pub const POSTED: Form = Form {
        registers_alone: false,
        releases_first: false,
        unlinks_once: false,
        releases: false,
        waits: false,
        callbacks_sleep: true,
        walks_sleep: false,
        unwinds: false,
    };
    /// With what its review has asked for.
    pub const REVIEWED: Form = Form {
        registers_alone: true,
        releases_first: true,
        unlinks_once: true,
        releases: true,
        waits: true,
        callbacks_sleep: true,
        walks_sleep: true,
        unwinds: true,
    };
    /// As merged, July 2008.
    pub const V2_6_27: Form =
        Form { releases_first: false, callbacks_sleep: false, walks_sleep: false, unwinds: false, ..Form::REVIEWED };
    /// Linux 3.6.
    pub const V3_6: Form =
        Form { unlinks_once: false, callbacks_sleep: false, walks_sleep: false, unwinds: false, ..Form::REVIEWED };
    /// Linux 3.9.
    pub const V3_9: Form = Form { releases_first: false, unwinds: false, ..Form::REVIEWED };
    /// Linux 3.10.
    pub const V3_10: Form = Form { unwinds: false, ..Form::REVIEWED };
    /// Linux 4.19: callbacks may refuse.
    pub const V4_19: Form = Form::V3_10;

    /// All of them, by name.
    pub const ALL: [(&str, Form); 7] = [
        ("posted", Form::POSTED),
        ("reviewed", Form::REVIEWED),
        ("v2.6.27", Form::V2_6_27),
        ("v3.6", Form::V3_6),
        ("v3.9", Form::V3_9),
        ("v3.10", Form::V3_10),
        ("v4.19", Form::V4_19),
    ];
}

/// The list of an address space, in a former form.
pub struct FormerChain<K: NotifierKernel> {
    list: List<K>,
    form: Form,
}

impl<K: NotifierKernel> fmt::Debug for FormerChain<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.form.fmt(f)
    }
}

impl<K: NotifierKernel> FormerChain<K> {
    /// Nobody is subscribed.
    pub fn new(form: Form) -> Self {
        FormerChain { list: List::default(), form }
    }

    /// Subscribes. Context: the mmap lock is held for writing.
    ///
    /// # Errors
    /// See [`RegisterError`].
    ///
    /// # Safety
    /// As for [`Chain::register`](crate::Chain::register); what the form does not do for it the caller does.
    pub unsafe fn register(
        &self,
        kernel: K,
        mmap: &mut impl MmapWrite<K>,
        node: &Node<K>,
    ) -> Result<(), RegisterError> {
        if mmap.mm_users() == 0 {
            return Err(RegisterError::NoUsers);
        }
        if self.form.registers_alone {
            mmap.mm_take_all_locks()?;
        }
        node.mm.store(core::ptr::from_ref(mmap.mm()).cast_mut(), Relaxed);
        locked(kernel, &self.list.lock, || self.list.link(node));
        self.list.subscribe(LIST);
        if self.form.registers_alone {
            mmap.mm_drop_all_locks();
        }
        Ok(())
    }

    /// Unsubscribes.
    ///
    /// # Errors
    /// If it would wait for its own caller.
    ///
    /// # Safety
    /// As for [`Chain::unregister`](crate::Chain::unregister). Where the form does not wait the caller does
    /// ([`synchronize`](Self::synchronize)) before it frees anything.
    pub unsafe fn unregister(&self, kernel: K, mm: &K::Mm, node: &Node<K>) -> Result<(), UnregisterError> {
        let Form { releases_first, unlinks_once, releases, waits, .. } = self.form;
        if waits && kernel.task().is_in_callback() {
            return Err(UnregisterError::InCallback);
        }
        if !releases {
            self.unlink(kernel, node);
        } else if releases_first {
            if node.is_linked() {
                self.in_walk(kernel, || node.subscriber().release(mm));
                self.unlink(kernel, node);
            }
        } else if locked(kernel, &self.list.lock, || List::unlink(node)) {
            self.in_walk(kernel, || node.subscriber().release(mm));
        } else if !unlinks_once {
            kernel.warn(Warning::UnlinkedTwice);
        }
        if waits {
            self.synchronize(kernel);
        }
        Ok(())
    }

    /// Takes a node out, as the form does: where it does not ask whether it is in, Linux's would write through a null pointer.
    fn unlink(&self, kernel: K, node: &Node<K>) {
        let was_linked = locked(kernel, &self.list.lock, || List::unlink(node));
        if !was_linked && !self.form.unlinks_once {
            kernel.warn(Warning::UnlinkedTwice);
        }
    }

    /// Waits until no callback runs that ran when this was called. Context: may sleep, not in a callback.
    pub fn synchronize(&self, kernel: K) {
        self.list.synchronize(kernel);
    }

    /// The address space goes. Context: as for [`Chain::release`](crate::Chain::release).
    pub fn release(&self, kernel: K, mm: &K::Mm) {
        if self.form.releases_first {
            self.in_walk(kernel, || {
                self.list.each(|node| node.subscriber().release(mm));
                locked(kernel, &self.list.lock, || while self.list.unlink_first().is_some() {});
            });
        } else {
            while let Some(node) = locked(kernel, &self.list.lock, || self.list.unlink_first()) {
                // SAFETY: it was in the list, and whoever unsubscribes it waits, or must.
                let node = unsafe { node.as_ref() };
                self.in_walk(kernel, || node.subscriber().release(mm));
            }
        }
        if self.form.waits {
            self.synchronize(kernel);
        }
    }

    /// Runs callbacks in a walk.
    fn in_walk<R>(&self, kernel: K, f: impl FnOnce() -> R) -> R {
        self.list.in_walk(kernel, || without_blocking(kernel, self.form.walks_sleep, f))
    }

    /// Page tables are about to change.
    pub fn invalidate_range_start(&self, kernel: K, mm: &K::Mm, range: &Range) {
        let invalidation = Invalidation::new(range, self.form.callbacks_sleep);
        // Nobody may refuse; who cannot sleep here does what it can.
        let _ = self.in_walk(kernel, || self.list.start_each(kernel, mm, invalidation));
    }

    /// The same where the caller must not wait.
    ///
    /// # Errors
    /// If somebody would have to.
    pub fn invalidate_range_start_nonblock(&self, kernel: K, mm: &K::Mm, range: &Range) -> Result<(), WouldBlock> {
        let invalidation = Invalidation::new(range, false);
        self.in_walk(kernel, || {
            let started = self.list.start_each(kernel, mm, invalidation);
            if started.is_err() && self.form.unwinds {
                self.list.end_each(kernel, mm, invalidation);
            }
            started
        })
    }

    /// They have changed.
    pub fn invalidate_range_end(&self, kernel: K, mm: &K::Mm, range: &Range, blockable: bool) {
        let invalidation = Invalidation::new(range, blockable && self.form.callbacks_sleep);
        self.in_walk(kernel, || self.list.end_each(kernel, mm, invalidation));
    }
}
