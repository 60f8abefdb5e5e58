//! Strategies that free later, with a step wrong: around the library's own, whose other steps they leave as they are.

use lazytlb_core::cpumask::Among;
use lazytlb_core::lazy_tlb::{Freeing, Host, LazyTlb};
use lazytlb_core::memory::Ordering::Relaxed;
use lazytlb_core::mm::{MmCore, MmPtr};
use lazytlb_core::part::{Part, PartOf};
use lazytlb_core::platform::{Clock, Context, IpisInterrupt};
use lazytlb_core::waiting::{Link, Waiting};
use lazytlb_hazard::HazardDeadline;
use lazytlb_hazard::deadline::Waits;
use lazytlb_hazard::slot::LazySlot;
use lazytlb_machine::Reach;
use lazytlb_shootdown::batched::Batch;
use lazytlb_shootdown::{CanShoot, ShootdownBatched};

use crate::accounted::{Accounted, NeedsMask, Published};
use crate::mutants::Mutant;

/// [`HazardDeadline`], with the step wrong that is planted.
#[derive(Clone, Copy, Debug)]
pub struct WrongDeadline;

impl WrongDeadline {
    const RIGHT: HazardDeadline = HazardDeadline::new();
}

impl<P: Clock + IpisInterrupt> LazyTlb<P> for WrongDeadline {
    type CpuState = LazySlot<P>;
    type MmState = Waits<P>;
    type Shared = Waiting<P>;

    fn name(&self) -> &'static str {
        "wrong-deadline"
    }

    fn spares_isolated(&self) -> bool {
        true
    }

    fn mmgrab_lazy_tlb(&self, platform: P, this: &LazySlot<P>, shared: &Waiting<P>, mm: &MmCore<P>) {
        Self::RIGHT.mmgrab_lazy_tlb(platform, this, shared, mm);
    }

    fn leave_lazy_tlb(&self, platform: P, this: &LazySlot<P>) {
        Self::RIGHT.leave_lazy_tlb(platform, this);
    }

    fn borrow_is_over(&self, host: &impl Host<P, Self>) {
        if !Mutant::TailForgets.is_planted() {
            Self::RIGHT.borrow_is_over(&Part::new(host));
        }
    }

    fn cleanup_lazy_tlbs(&self, host: &impl Host<P, Self>, mm: MmPtr<P>) -> Freeing {
        Self::RIGHT.cleanup_lazy_tlbs(&Part::new(host), mm)
    }

    fn collect(&self, host: &impl Host<P, Self>) {
        if !Mutant::TimeIsUp.is_planted() {
            return Self::RIGHT.collect(&Part::new(host));
        }
        let platform = host.platform();
        host.shared().with_turn(host, |turn| {
            for mm in turn.take(host) {
                // SAFETY: what waits is not freed before a collector frees it, and this one has the turn.
                let core = unsafe { mm.as_ref() };
                let borrows = |cpu| host.cpu_state(cpu).scan() == mm.as_ptr();
                host.evict_lazies(core, Among::All, |cpu| borrows(cpu) && !platform.cpu_isolated(cpu));
                // SAFETY: none; that is what is wrong.
                unsafe { turn.free(host, mm) };
            }
        });
    }

    fn may_free(&self, context: Context) -> bool {
        LazyTlb::<P>::may_free(&Self::RIGHT, context)
    }
}

impl<P: Clock + IpisInterrupt> PartOf<WrongDeadline, P> for HazardDeadline {
    fn of_cpu(whole: &LazySlot<P>) -> &LazySlot<P> {
        whole
    }

    fn of_mm(whole: &Waits<P>) -> &Waits<P> {
        whole
    }

    fn of_shared(whole: &Waiting<P>) -> &Waiting<P> {
        whole
    }
}

impl<P: CanShoot + Clock> Accounted<P> for WrongDeadline {
    fn publishes(&self, cpu: &LazySlot<P>) -> Published<P> {
        Published::slot(cpu.lazy_mm())
    }

    fn needs_worker(&self) -> bool {
        true
    }

    fn tells_time(&self) -> bool {
        true
    }

    fn waiting(&self, shared: &Waiting<P>) -> usize {
        shared.len()
    }

    fn waits_for_slots(&self) -> bool {
        true
    }

    fn waits_for(&self, _cpu: &LazySlot<P>, borrows: bool, isolated: bool) -> bool {
        borrows && isolated
    }

    fn time_in(&self, mm: &Waits<P>) -> usize {
        mm.until()
    }

    fn reach(&self) -> Reach {
        Accounted::<P>::reach(&Self::RIGHT)
    }
}

/// [`ShootdownBatched`], with the step wrong that is planted.
#[derive(Clone, Copy, Debug)]
pub struct WrongBatched;

impl WrongBatched {
    const RIGHT: ShootdownBatched = ShootdownBatched::new();
}

impl<P: CanShoot + Clock> LazyTlb<P> for WrongBatched {
    type CpuState = ();
    type MmState = Link<P>;
    type Shared = Batch<P>;

    fn name(&self) -> &'static str {
        "wrong-batched"
    }

    fn mmgrab_lazy_tlb(&self, _platform: P, _this: &(), _shared: &Batch<P>, _mm: &MmCore<P>) {}

    fn cleanup_lazy_tlbs(&self, host: &impl Host<P, Self>, mm: MmPtr<P>) -> Freeing {
        Self::RIGHT.cleanup_lazy_tlbs(&Part::new(host), mm)
    }

    fn collect(&self, host: &impl Host<P, Self>) {
        if !Mutant::OneMask.is_planted() {
            return Self::RIGHT.collect(&Part::new(host));
        }
        host.shared().waiting().with_turn(host, |turn| {
            let mut mms = turn.take(host);
            let Some(first) = mms.next() else { return };
            // SAFETY: what waits is not freed before a collector frees it, and this one has the turn.
            let mask = unsafe { first.as_ref() }.cpumask();
            // SAFETY: active_mm is alive but for what is wrong here.
            unsafe { host.evict_unused(Among::All, |cpu| mask.test_cpu(cpu, Relaxed)) };
            // SAFETY: none; that is what is wrong.
            mms.chain([first]).for_each(|mm| unsafe { turn.free(host, mm) });
        });
    }

    fn may_free(&self, context: Context) -> bool {
        LazyTlb::<P>::may_free(&Self::RIGHT, context)
    }
}

impl<P: CanShoot + Clock> PartOf<WrongBatched, P> for ShootdownBatched {
    fn of_cpu((): &()) -> &() {
        &()
    }

    fn of_mm(whole: &Link<P>) -> &Link<P> {
        whole
    }

    fn of_shared(whole: &Batch<P>) -> &Batch<P> {
        whole
    }
}

impl<P: CanShoot + Clock> Accounted<P> for WrongBatched {
    fn needs_mask(&self) -> NeedsMask {
        NeedsMask::WithoutReferences
    }

    fn needs_worker(&self) -> bool {
        true
    }

    fn waiting(&self, shared: &Batch<P>) -> usize {
        shared.waiting().len()
    }

    fn reach(&self) -> Reach {
        Accounted::<P>::reach(&Self::RIGHT)
    }
}
