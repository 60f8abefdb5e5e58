//! [`RefcountDeferred`]: reference counting where the tail of a switch must not free.

use lazytlb_core::lazy_tlb::{Freeing, Host, KeepsMmAlive, LazyTlb};
use lazytlb_core::mm::{CountRef, MmCore, MmPtr};
use lazytlb_core::platform::{Context, Worker};
use lazytlb_core::waiting::{Link, Waiting};

/// [`Refcount`](crate::Refcount), with a worker that frees what was dropped where freeing may sleep.
///
/// On a real-time kernel the tail of a switch runs with preemption off, and the locks that freeing takes sleep. Linux
/// built with `PREEMPT_RT` hands a last reference that is dropped there to `call_rcu`: not for its grace period, only
/// because that is a way to have it done later. Here it goes to the platform's worker.
///
/// It departs from Linux in what decides. Linux has two functions, `mmdrop` and `mmdrop_lazy_tlb_sched`, and every other
/// caller that drops a last reference in an atomic context is a bug (`lazytlb bugs B24`, `B25`, `B28`). Here
/// the context itself is asked: with preemption or interrupts off, or in an interrupt, the mm waits; else it is freed at
/// once. So the last reference may be dropped anywhere but in an NMI.
///
/// | path | cost |
/// | --- | --- |
/// | switches | those of [`Refcount`](crate::Refcount) |
/// | freeing, in process context | at once, by whoever drops last |
/// | freeing, anywhere else | three RMWs; the worker frees |
///
/// *Needs:* a [`Worker`]. A word in each mm.
///
/// *Cannot:* what [`Refcount`](crate::Refcount) cannot; and the worker comes when it comes: until then the struct and the
/// root stay allocated.
///
/// Source: kernel/fork.c `__mmdrop_delayed` under `CONFIG_PREEMPT_RT` (Thomas Gleixner, Linux 5.16).
#[derive(Clone, Copy, Debug, Default)]
pub struct RefcountDeferred;

impl<P: Worker> LazyTlb<P> for RefcountDeferred {
    type CpuState = ();
    type MmState = Link<P>;
    type Shared = Waiting<P>;

    fn name(&self) -> &'static str {
        "refcount-deferred"
    }

    #[inline]
    fn spares_isolated(&self) -> bool {
        true
    }

    #[inline]
    fn mmgrab_lazy_tlb(&self, _platform: P, _this: &(), _shared: &Waiting<P>, mm: &MmCore<P>) {
        // SAFETY: the borrow owns it, and gives it back when it ends.
        unsafe { mm.count_add(1) };
    }

    #[inline]
    fn mmdrop_lazy_tlb(&self, _platform: P, mm: MmPtr<P>) -> Option<CountRef<P>> {
        // SAFETY: the borrow took this reference in mmgrab_lazy_tlb, and ends once.
        Some(unsafe { CountRef::new(mm) })
    }

    fn cleanup_lazy_tlbs(&self, host: &impl Host<P, Self>, mm: MmPtr<P>) -> Freeing {
        if host.platform().context().may_sleep() {
            return Freeing::Now;
        }
        // SAFETY: this is the mm that is to be freed.
        unsafe { host.shared().push(host, mm) };
        host.platform().queue_work();
        Freeing::Later
    }

    fn collect(&self, host: &impl Host<P, Self>) {
        // SAFETY: the count of each is zero, and each borrow owns a reference.
        unsafe { host.shared().free_all(host) };
    }

    /// Dropping the last reference frees nothing where that would not do. A worker cannot be asked for from an NMI.
    fn may_free(&self, context: Context) -> bool {
        !context.in_nmi
    }
}

// SAFETY: as for Refcount.
unsafe impl<P: Worker> KeepsMmAlive<P> for RefcountDeferred {}
