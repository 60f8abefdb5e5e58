//! [`HazardIpi`]: a slot, and an interrupt to exactly those whose slot names the dying mm.
//!
//! Mathieu Desnoyers' "sched+mm: Use hazard pointers to track lazy active mm existence" (RFC v1 to v3, October 2024; not
//! merged). Between [`Shootdown`](https://docs.rs/lazytlb-shootdown) and [`HazardConvert`](crate::HazardConvert): it
//! frees at once, as the one, and knows who borrows, as the other.
//!
//! It departs from the posted form in two ways. All borrowers are interrupted in one round, where the RFC interrupts
//! them one after the other; and a CPU's answer ends the wait, where the RFC goes on to poll the slot. The fence before
//! the slot's store is kept, though nothing needs it (see [`LazySlot`]): it is what the published
//! measurements measured.

use lazytlb_core::cpumask::Among;
use lazytlb_core::lazy_tlb::{Freeing, Host, KeepsMmAlive, LazyTlb};
use lazytlb_core::memory::{Label, Labelled, Ordering::*};
use lazytlb_core::mm::{MmCore, MmPtr};
use lazytlb_core::platform::{Context, IpisInterrupt, Warning};

use crate::slot::LazySlot;

/// The RFC's fence before a borrow is published.
pub const GRAB: Label = Label::new("hazard_ipi.grab");
/// The fence before the scan. The RFC's; the decrement that reached zero is one already.
pub const BEFORE_SCAN: Label = Label::new("hazard_ipi.before_scan");

/// A published borrow, ended by interrupt when the mm is freed.
///
/// | path | cost |
/// | --- | --- |
/// | user to kernel thread | one full barrier, one plain store to the CPU's own line |
/// | kernel thread to kernel thread | nothing |
/// | kernel thread to user | one full barrier, one release store |
/// | freeing | one load of each CPU's line; an interrupt to each borrower, and a wait for all of them |
///
/// *Needs:* that an interrupt reaches the borrowers ([`IpisInterrupt`]). No mask: the slots say who borrows, so nobody is
/// interrupted in vain.
///
/// *Cannot:* free with interrupts off, or with a lock held that a borrower may spin for with interrupts off; leave
/// isolated CPUs alone if they borrow; beat reference counting while the mm's line is not contended, because a fence
/// costs about what an uncontended RMW does.
///
/// *Orderings:* a slot that names another mm, read with acquire, was stored after the MMU had left ours (pair L2). That
/// no borrow begins after the scan follows from `users` being zero (pair L1).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct HazardIpi {
    /// Whether the RFC's two fences are there that nothing needs. Without them it is what Piggin's log of Linux commit
    /// 2655421ae69f wished for: [`Shootdown`](https://docs.rs/lazytlb-shootdown) with the borrowers published, so that
    /// nobody is interrupted in vain.
    pub fences: bool,
}

impl HazardIpi {
    /// As the RFC has it.
    pub const fn new() -> Self {
        HazardIpi { fences: true }
    }
}

impl Default for HazardIpi {
    fn default() -> Self {
        HazardIpi::new()
    }
}

impl<P: IpisInterrupt> LazyTlb<P> for HazardIpi {
    type CpuState = LazySlot<P>;
    type MmState = ();
    type Shared = ();

    fn name(&self) -> &'static str {
        if self.fences { "hazard-ipi" } else { "hazard-ipi-unfenced" }
    }

    #[inline]
    fn mmgrab_lazy_tlb(&self, platform: P, this: &LazySlot<P>, _shared: &(), mm: &MmCore<P>) {
        if self.fences {
            platform.fence(SeqCst.at(GRAB));
        }
        if P::DEBUG_VM && this.lazy_mm().is_some() {
            platform.warn(Warning::SlotBusy);
        }
        this.publish(MmPtr::from(mm).as_ptr());
    }

    #[inline]
    fn leave_lazy_tlb(&self, _platform: P, this: &LazySlot<P>) {
        this.unpublish();
    }

    fn cleanup_lazy_tlbs(&self, host: &impl Host<P, Self>, mm: MmPtr<P>) -> Freeing {
        // SAFETY: it is freed by who this says, and only then.
        let core = unsafe { mm.as_ref() };
        if self.fences {
            host.platform().fence(SeqCst.at(BEFORE_SCAN));
        }
        let borrowed = mm.as_ptr();
        host.evict_lazies(core, Among::All, |cpu| host.cpu_state(cpu).scan() == borrowed);
        Freeing::Now
    }

    /// The round waits for other CPUs, which may be waiting for this one.
    fn may_free(&self, context: Context) -> bool {
        context.may_wait_for_cpus()
    }
}

// SAFETY: the mm is freed only after every CPU whose slot named it has answered the round, and a CPU with interrupts off
// does not answer. A CPU whose slot does not name it has left it, and can never borrow it again: it has no user.
unsafe impl<P: IpisInterrupt> KeepsMmAlive<P> for HazardIpi {}
