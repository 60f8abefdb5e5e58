//! [`Accounted`]: what a strategy's books look like from outside, for those who check them.

use lazytlb::any::{AnyLazyTlb, AnyPlatform};
use lazytlb_core::lazy_tlb::LazyTlb;
use lazytlb_core::mm::MmPtr;
use lazytlb_core::no_lazy::NoLazy;
use lazytlb_core::platform::{Clock, Platform, Worker};
use lazytlb_epoch::{EpochPinned, EpochQs};
use lazytlb_hazard::convert::{Convert, ConvertSteps};
use lazytlb_hazard::general::{General, GeneralSteps};
use lazytlb_hazard::{HazardDeadline, HazardIpi};
use lazytlb_machine::Reach;
use lazytlb_refcount::per_cpu::{ActivateSteps, PerCpu};
use lazytlb_refcount::{Refcount, RefcountDeferred};
use lazytlb_shootdown::{CanShoot, LazyFix, Shootdown, ShootdownBatched, UsersOnly};

use crate::strategies::Unprotected;

/// What a CPU tells reclaimers of what it borrows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Published<P: Platform> {
    /// The strategy has nobody publish anything.
    NotAtAll,
    /// That it borrows nothing.
    Nothing,
    /// That it borrows, and not what.
    Something,
    /// What it borrows, or the wildcard of a CPU that is about to.
    Mm(MmPtr<P>),
}

impl<P: Platform> Published<P> {
    /// What a slot says.
    pub(crate) fn slot(mm: Option<MmPtr<P>>) -> Self {
        mm.map_or(Published::Nothing, Published::Mm)
    }

    /// What a mark says.
    fn mark(borrows: bool) -> Self {
        if borrows { Published::Something } else { Published::Nothing }
    }

    /// Whether a reclaimer of `mm` would find a borrower here; whoever publishes nothing at all is found in other ways.
    pub fn covers(self, mm: MmPtr<P>) -> bool {
        match self {
            Published::NotAtAll | Published::Something => true,
            Published::Nothing => false,
            Published::Mm(published) => published == mm,
        }
    }

    /// Whether a reclaimer would find a borrower here, of whatever.
    pub fn is_something(self) -> bool {
        matches!(self, Published::Something | Published::Mm(_))
    }
}

/// When a strategy relies on `mm_cpumask` to hold every CPU whose `active_mm` is the mm.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NeedsMask {
    /// Never.
    Never,
    /// When the last user goes.
    WithoutUsers,
    /// When the last reference goes.
    WithoutReferences,
}

/// What a strategy's books look like from outside: how many references to an mm a CPU accounts for, and which mms may
/// wait to be freed.
///
/// At rest `count` of every mm is one for its users, if it has any, plus these, plus what scripts hold (invariant I5).
pub trait Accounted<P: Platform>: LazyTlb<P> {
    /// Whether it needs the worker, so that a machine must have one.
    fn needs_worker(&self) -> bool {
        false
    }

    /// Whether it ever compares a time with the present. Else nobody can tell when the clock goes on.
    fn tells_time(&self) -> bool {
        false
    }

    /// The references to `mm` that a CPU owns, whose state `cpu` is. `borrows` says whether it borrows `mm`.
    fn references(&self, cpu: &Self::CpuState, mm: MmPtr<P>, borrows: bool) -> usize {
        let _ = (cpu, mm, borrows);
        0
    }

    /// What a CPU tells reclaimers, whose state `cpu` is.
    fn publishes(&self, cpu: &Self::CpuState) -> Published<P> {
        let _ = cpu;
        Published::NotAtAll
    }

    /// When it relies on the mask.
    fn needs_mask(&self) -> NeedsMask {
        NeedsMask::Never
    }

    /// How many mms wait to be freed.
    fn waiting(&self, shared: &Self::Shared) -> usize {
        let _ = shared;
        0
    }

    /// Whether an mm waits for those alone who name it, and each names one: at rest no more wait than CPUs borrow.
    fn waits_for_slots(&self) -> bool {
        false
    }

    /// Whether an mm that waits may do so for the sake of a CPU. `borrows` says whether that borrows the mm, `isolated` whether
    /// it is to be left alone.
    fn waits_for(&self, cpu: &Self::CpuState, borrows: bool, isolated: bool) -> bool {
        let _ = (cpu, borrows, isolated);
        false
    }

    /// The epoch that it counts, if it counts one itself; else its times are those of the platform's clock.
    fn epoch(&self, shared: &Self::Shared) -> usize {
        let _ = shared;
        0
    }

    /// The time that it keeps for a CPU, if it does.
    fn time_on(&self, cpu: &Self::CpuState) -> usize {
        let _ = cpu;
        0
    }

    /// The time that it keeps in an mm, if it does.
    fn time_in(&self, mm: &Self::MmState) -> usize {
        let _ = mm;
        0
    }

    /// How far the times that it keeps lie from the present.
    fn reach(&self) -> Reach {
        Reach::default()
    }
}

impl<P: Platform> Accounted<P> for NoLazy {}

impl<P: Platform> Accounted<P> for Unprotected {}

impl<P: Platform> Accounted<P> for Refcount {
    fn references(&self, _cpu: &(), _mm: MmPtr<P>, borrows: bool) -> usize {
        usize::from(borrows)
    }
}

impl<P: Worker> Accounted<P> for RefcountDeferred {
    fn needs_worker(&self) -> bool {
        true
    }

    fn references(&self, _cpu: &(), _mm: MmPtr<P>, borrows: bool) -> usize {
        usize::from(borrows)
    }

    fn waiting(&self, shared: &Self::Shared) -> usize {
        shared.len()
    }
}

impl<P: Platform, Steps: ActivateSteps<P>> Accounted<P> for PerCpu<Steps> {
    fn references(&self, cpu: &Self::CpuState, mm: MmPtr<P>, _borrows: bool) -> usize {
        cpu.references(mm)
    }
}

impl<P: CanShoot> Accounted<P> for Shootdown {
    fn needs_mask(&self) -> NeedsMask {
        NeedsMask::WithoutReferences
    }
}

impl<P: CanShoot> Accounted<P> for UsersOnly {
    fn needs_mask(&self) -> NeedsMask {
        NeedsMask::WithoutUsers
    }
}

impl<P: CanShoot> Accounted<P> for LazyFix {
    fn needs_mask(&self) -> NeedsMask {
        NeedsMask::WithoutReferences
    }
}

impl<P: CanShoot + Clock> Accounted<P> for ShootdownBatched {
    fn needs_mask(&self) -> NeedsMask {
        NeedsMask::WithoutReferences
    }

    fn needs_worker(&self) -> bool {
        true
    }

    fn waiting(&self, shared: &Self::Shared) -> usize {
        shared.waiting().len()
    }

    /// What has come does not come a second time.
    fn reach(&self) -> Reach {
        Reach { ahead: self.linger, behind: 0 }
    }
}

impl<P: Platform, Steps: ConvertSteps<P>> Accounted<P> for Convert<Steps> {
    fn references(&self, cpu: &Self::CpuState, mm: MmPtr<P>, _borrows: bool) -> usize {
        usize::from(cpu.drop_mm() == Some(mm))
    }

    fn publishes(&self, cpu: &Self::CpuState) -> Published<P> {
        Published::slot(cpu.lazy().lazy_mm())
    }
}

impl<P: CanShoot> Accounted<P> for HazardIpi {
    fn publishes(&self, cpu: &Self::CpuState) -> Published<P> {
        Published::slot(cpu.lazy_mm())
    }
}

impl<P: CanShoot + Clock> Accounted<P> for HazardDeadline {
    fn publishes(&self, cpu: &Self::CpuState) -> Published<P> {
        Published::slot(cpu.lazy_mm())
    }

    fn needs_worker(&self) -> bool {
        true
    }

    fn waiting(&self, shared: &Self::Shared) -> usize {
        shared.len()
    }

    fn waits_for_slots(&self) -> bool {
        true
    }

    fn waits_for(&self, _cpu: &Self::CpuState, borrows: bool, isolated: bool) -> bool {
        borrows && (isolated || self.deadline.is_none())
    }

    fn tells_time(&self) -> bool {
        self.deadline.is_some()
    }

    fn time_in(&self, mm: &Self::MmState) -> usize {
        mm.until()
    }

    /// Of a deadline that is over nobody asks when it was.
    fn reach(&self) -> Reach {
        Reach { ahead: self.deadline.unwrap_or(0), behind: 0 }
    }
}

impl<P: Platform, Steps: GeneralSteps<P>> Accounted<P> for General<Steps> {
    fn publishes(&self, cpu: &Self::CpuState) -> Published<P> {
        Published::slot(cpu.held())
    }

    fn waiting(&self, shared: &Self::Shared) -> usize {
        shared.len()
    }

    fn waits_for_slots(&self) -> bool {
        true
    }

    fn waits_for(&self, _cpu: &Self::CpuState, borrows: bool, _isolated: bool) -> bool {
        borrows
    }
}

macro_rules! epochs {
    ($($strategy:ident { $($more:item)* })*) => {
        $(impl<P: Platform> Accounted<P> for $strategy {
            fn publishes(&self, cpu: &Self::CpuState) -> Published<P> {
                Published::mark(cpu.borrows())
            }

            fn waiting(&self, shared: &Self::Shared) -> usize {
                shared.waiting().len()
            }

            fn waits_for(&self, cpu: &Self::CpuState, _borrows: bool, _isolated: bool) -> bool {
                cpu.borrows()
            }

            $($more)*
        })*
    };
}

epochs! {
    EpochQs {}
    EpochPinned {
        fn epoch(&self, shared: &Self::Shared) -> usize {
            shared.epoch()
        }

        fn time_on(&self, cpu: &Self::CpuState) -> usize {
            cpu.pinned_in()
        }

        fn time_in(&self, mm: &Self::MmState) -> usize {
            mm.died_in()
        }

        /// Two epochs: what died then is freed, what was pinned before holds up as what is pinned now does.
        fn reach(&self) -> Reach {
            Reach { ahead: 3, behind: 3 }
        }
    }
}

/// Does something with whichever strategy it is, and with its part of states of all.
macro_rules! each {
    (@part () $field:ident) => {};
    (@part ($part:ident of $whole:ident) $field:ident) => {
        let $part = &$whole.$field;
    };
    ($any:expr, |$strategy:ident $(, $part:ident of $whole:ident)?| $body:expr) => {
        each!(@all $any, $strategy, ($($part of $whole)?), $body;
            NoLazy no_lazy, Refcount refcount, RefcountDeferred refcount_deferred, RefcountPerCpu refcount_per_cpu,
            Shootdown shootdown, ShootdownBatched shootdown_batched, UsersOnly users_only, LazyFix lazyfix, HazardConvert hazard_convert,
            HazardIpi hazard_ipi, HazardDeadline hazard_deadline, GeneralHazard general_hazard, EpochQs epoch_qs,
            EpochPinned epoch_pinned)
    };
    (@all $any:expr, $strategy:ident, $parts:tt, $body:expr; $($variant:ident $field:ident),*) => {
        match $any {
            $(AnyLazyTlb::$variant($strategy) => {
                each!(@part $parts $field);
                $body
            })*
            _ => unreachable!("the list above has all"),
        }
    };
}

impl<P: AnyPlatform> Accounted<P> for AnyLazyTlb {
    fn needs_worker(&self) -> bool {
        each!(self, |strategy| Accounted::<P>::needs_worker(strategy))
    }

    fn tells_time(&self) -> bool {
        each!(self, |strategy| Accounted::<P>::tells_time(strategy))
    }

    fn references(&self, cpu: &Self::CpuState, mm: MmPtr<P>, borrows: bool) -> usize {
        each!(self, |strategy, part of cpu| Accounted::<P>::references(strategy, part, mm, borrows))
    }

    fn publishes(&self, cpu: &Self::CpuState) -> Published<P> {
        each!(self, |strategy, part of cpu| Accounted::<P>::publishes(strategy, part))
    }

    fn needs_mask(&self) -> NeedsMask {
        each!(self, |strategy| Accounted::<P>::needs_mask(strategy))
    }

    fn waiting(&self, shared: &Self::Shared) -> usize {
        each!(self, |strategy, part of shared| Accounted::<P>::waiting(strategy, part))
    }

    fn waits_for_slots(&self) -> bool {
        each!(self, |strategy| Accounted::<P>::waits_for_slots(strategy))
    }

    fn waits_for(&self, cpu: &Self::CpuState, borrows: bool, isolated: bool) -> bool {
        each!(self, |strategy, part of cpu| Accounted::<P>::waits_for(strategy, part, borrows, isolated))
    }

    fn epoch(&self, shared: &Self::Shared) -> usize {
        each!(self, |strategy, part of shared| Accounted::<P>::epoch(strategy, part))
    }

    fn time_on(&self, cpu: &Self::CpuState) -> usize {
        each!(self, |strategy, part of cpu| Accounted::<P>::time_on(strategy, part))
    }

    fn time_in(&self, mm: &Self::MmState) -> usize {
        each!(self, |strategy, part of mm| Accounted::<P>::time_in(strategy, part))
    }

    fn reach(&self) -> Reach {
        each!(self, |strategy| Accounted::<P>::reach(strategy))
    }
}
