//! Strategies around the library's own, with a step wrong that is planted. All other steps, and the books, are the
//! library's.

use lazytlb_core::cpumask::{Among, CpuId};
use lazytlb_core::lazy_tlb::{Freeing, Host, LazyTlb};
use lazytlb_core::memory::Ordering::Relaxed;
use lazytlb_core::mm::{CountRef, MmCore, MmPtr};
use lazytlb_core::part::{Part, PartOf};
use lazytlb_core::platform::{Clock, Context};
use lazytlb_hazard::{HazardDeadline, HazardIpi};
use lazytlb_machine::Reach;
use lazytlb_shootdown::{CanShoot, ShootdownBatched};

use crate::accounted::{Accounted, NeedsMask, Published};
use crate::mutants::Mutant;

/// Makes a strategy around another, whose state is the other's. Of `spares_isolated`, `borrow_is_over` and `collect` each says
/// itself those that it has wrong, or that the other has; it has all other steps from the other.
macro_rules! around {
    ($(#[$doc:meta])* $wrong:ident($right:ident = $new:expr), $name:literal { $($steps:item)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub struct $wrong;

        impl $wrong {
            const RIGHT: $right = $new;
        }

        impl<P: CanShoot + Clock> LazyTlb<P> for $wrong {
            type CpuState = <$right as LazyTlb<P>>::CpuState;
            type MmState = <$right as LazyTlb<P>>::MmState;
            type Shared = <$right as LazyTlb<P>>::Shared;

            fn name(&self) -> &'static str {
                $name
            }

            fn mmgrab_lazy_tlb(&self, platform: P, this: &Self::CpuState, shared: &Self::Shared, mm: &MmCore<P>) {
                LazyTlb::<P>::mmgrab_lazy_tlb(&Self::RIGHT, platform, this, shared, mm);
            }

            fn activate_mm(&self, host: &impl Host<P, Self>, this: &Self::CpuState, mm: Option<&MmCore<P>>) {
                LazyTlb::<P>::activate_mm(&Self::RIGHT, &Part::new(host), this, mm);
            }

            fn leave_lazy_tlb(&self, platform: P, this: &Self::CpuState) {
                LazyTlb::<P>::leave_lazy_tlb(&Self::RIGHT, platform, this);
            }

            fn mmdrop_lazy_tlb(&self, platform: P, mm: MmPtr<P>) -> Option<CountRef<P>> {
                LazyTlb::<P>::mmdrop_lazy_tlb(&Self::RIGHT, platform, mm)
            }

            fn mmdrop_lazy_tlb_sched(&self, platform: P, mm: MmPtr<P>) -> Option<CountRef<P>> {
                LazyTlb::<P>::mmdrop_lazy_tlb_sched(&Self::RIGHT, platform, mm)
            }

            fn switch_tail(&self, platform: P, this: &Self::CpuState) -> Option<CountRef<P>> {
                LazyTlb::<P>::switch_tail(&Self::RIGHT, platform, this)
            }

            fn mm_users_zero(&self, host: &impl Host<P, Self>, mm: &MmCore<P>) {
                LazyTlb::<P>::mm_users_zero(&Self::RIGHT, &Part::new(host), mm);
            }

            fn cleanup_lazy_tlbs(&self, host: &impl Host<P, Self>, mm: MmPtr<P>) -> Freeing {
                LazyTlb::<P>::cleanup_lazy_tlbs(&Self::RIGHT, &Part::new(host), mm)
            }

            fn evicts_at_idle(&self) -> bool {
                LazyTlb::<P>::evicts_at_idle(&Self::RIGHT)
            }

            fn may_free(&self, context: Context) -> bool {
                LazyTlb::<P>::may_free(&Self::RIGHT, context)
            }

            $($steps)*
        }

        impl<P: CanShoot + Clock> PartOf<$wrong, P> for $right {
            fn of_cpu(whole: &Self::CpuState) -> &Self::CpuState {
                whole
            }

            fn of_mm(whole: &Self::MmState) -> &Self::MmState {
                whole
            }

            fn of_shared(whole: &Self::Shared) -> &Self::Shared {
                whole
            }
        }

        impl<P: CanShoot + Clock> Accounted<P> for $wrong {
            fn needs_worker(&self) -> bool {
                Accounted::<P>::needs_worker(&Self::RIGHT)
            }

            fn tells_time(&self) -> bool {
                Accounted::<P>::tells_time(&Self::RIGHT)
            }

            fn references(&self, cpu: &Self::CpuState, mm: MmPtr<P>, borrows: bool) -> usize {
                Accounted::<P>::references(&Self::RIGHT, cpu, mm, borrows)
            }

            fn publishes(&self, cpu: &Self::CpuState) -> Published<P> {
                Accounted::<P>::publishes(&Self::RIGHT, cpu)
            }

            fn needs_mask(&self) -> NeedsMask {
                Accounted::<P>::needs_mask(&Self::RIGHT)
            }

            fn waiting(&self, shared: &Self::Shared) -> usize {
                Accounted::<P>::waiting(&Self::RIGHT, shared)
            }

            fn waits_for_slots(&self) -> bool {
                Accounted::<P>::waits_for_slots(&Self::RIGHT)
            }

            fn waits_for(&self, cpu: &Self::CpuState, borrows: bool, isolated: bool) -> bool {
                Accounted::<P>::waits_for(&Self::RIGHT, cpu, borrows, isolated)
            }

            fn epoch(&self, shared: &Self::Shared) -> usize {
                Accounted::<P>::epoch(&Self::RIGHT, shared)
            }

            fn time_on(&self, cpu: &Self::CpuState) -> usize {
                Accounted::<P>::time_on(&Self::RIGHT, cpu)
            }

            fn time_in(&self, mm: &Self::MmState) -> usize {
                Accounted::<P>::time_in(&Self::RIGHT, mm)
            }

            fn reach(&self) -> Reach {
                Accounted::<P>::reach(&Self::RIGHT)
            }
        }
    };
}

around! {
    /// [`HazardIpi`], in the variant that fences nobody, that says that it spares isolated CPUs, or looks into slots while
    /// nothing dies.
    WrongIpi(HazardIpi = HazardIpi { fences: false }), "wrong-ipi" {
        fn spares_isolated(&self) -> bool {
            Mutant::EvictsIsolated.is_planted()
        }

        fn borrow_is_over(&self, host: &impl Host<P, Self>) {
            if Mutant::LooksTooSoon.is_planted() {
                for cpu in 0..host.platform().nr_cpu_ids() {
                    host.cpu_state(CpuId::new(cpu)).scan();
                }
            }
        }
    }
}

around! {
    /// [`HazardDeadline`] that frees when the time is up, whoever borrows, or forgets to look when a borrow ends.
    WrongDeadline(HazardDeadline = HazardDeadline::new()), "wrong-deadline" {
        fn spares_isolated(&self) -> bool {
            LazyTlb::<P>::spares_isolated(&Self::RIGHT)
        }

        fn borrow_is_over(&self, host: &impl Host<P, Self>) {
            if !Mutant::TailForgets.is_planted() {
                Self::RIGHT.borrow_is_over(&Part::new(host));
            }
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
    }
}

around! {
    /// [`ShootdownBatched`] that has the CPUs of one mm's mask leave for all mms of a round.
    WrongBatched(ShootdownBatched = ShootdownBatched::new()), "wrong-batched" {
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
    }
}
