//! Strategies with one step wrong: planted bugs of logic, which the checker must find.
//!
//! Wrong orderings need no mutant: the lab drops the access with a given label.

use core::fmt;
use core::ptr::{NonNull, null_mut};
use core::str::FromStr;

use lazytlb_core::cpumask::{Among, CpuId};
use lazytlb_core::lazy_tlb::{Freeing, Host, LazyTlb};
use lazytlb_core::mm::{ARef, CountRef, Mm, MmCore, MmPtr};
use lazytlb_core::part::{Part, PartOf};
use lazytlb_core::platform::{Clock, Context, IpisInterrupt, Platform};
use lazytlb_core::waiting::Waiting;
use lazytlb_hazard::convert::{Convert, ConvertSteps, HazardSlot};
use lazytlb_hazard::deadline::{Collector, Waits};
use lazytlb_hazard::general::{GeneralSlot, GeneralSteps, wildcard};
use lazytlb_hazard::slot::LazySlot;
use lazytlb_hazard::{HazardDeadline, HazardIpi};
use lazytlb_refcount::per_cpu::{ActivateSteps, OwnedMm, PerCpu};
use lazytlb_shootdown::CanShoot;

use crate::platform::{Lab, MmData};
use crate::strategies::{Accounted, Published, Rules, UnknownName, by_name};

/// What is wrong.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Mutant {
    /// Nothing in the library: the test's own statements break a rule.
    Caller,
    /// [`CountAfterGive`].
    CountAfterGive,
    /// [`StaleSlot`].
    StaleSlot,
    /// [`JudgeBeforeTaking`].
    JudgeBeforeTaking,
    /// [`BackupFirst`].
    BackupFirst,
    /// [`NoSecondLook`].
    NoSecondLook,
    /// [`WildcardHolds`].
    WildcardHolds,
    /// [`DropInInterrupt`].
    DropInInterrupt,
    /// [`EmptiedEarly`].
    EmptiedEarly,
    /// [`LooksTooSoon`].
    LooksTooSoon,
    /// [`DropBeforeLoad`].
    DropBeforeLoad,
    /// [`EvictsIsolated`].
    EvictsIsolated,
    /// [`LooksAtPrev`](crate::rule_mutants::LooksAtPrev).
    LooksAtPrev,
    /// [`SkipsLazies`](crate::rule_mutants::SkipsLazies).
    SkipsLazies,
    /// [`LeavesAndEnters`](crate::rule_mutants::LeavesAndEnters).
    LeavesAndEnters,
    /// [`OthersAreLazy`](crate::rule_mutants::OthersAreLazy).
    OthersAreLazy,
    /// [`ResetsMask`](crate::rule_mutants::ResetsMask).
    ResetsMask,
    /// [`TrustsUsers`](crate::rule_mutants::TrustsUsers).
    TrustsUsers,
    /// [`Unpinned`](crate::rule_mutants::Unpinned).
    Unpinned,
    /// [`KeepsItsTlb`](crate::rule_mutants::KeepsItsTlb).
    KeepsItsTlb,
    /// [`ForgetsLazies`](crate::rule_mutants::ForgetsLazies).
    ForgetsLazies,
    /// [`FlushesItsOwn`](crate::rule_mutants::FlushesItsOwn).
    FlushesItsOwn,
    /// [`NeverFlushes`](crate::rule_mutants::NeverFlushes).
    NeverFlushes,
    /// [`SharesReserved`](crate::rule_mutants::SharesReserved).
    SharesReserved,
    /// [`KeepsOldContexts`](crate::rule_mutants::KeepsOldContexts).
    KeepsOldContexts,
    /// [`ReservesOnce`](crate::rule_mutants::ReservesOnce).
    ReservesOnce,
    /// [`SleepsOnItsTlb`](crate::rule_mutants::SleepsOnItsTlb).
    SleepsOnItsTlb,
    /// [`SkipsTlbsync`](crate::rule_mutants::SkipsTlbsync).
    SkipsTlbsync,
    /// [`SyncsElsewhere`](crate::rule_mutants::SyncsElsewhere).
    SyncsElsewhere,
    /// [`OnlyBroadcasts`](crate::rule_mutants::OnlyBroadcasts).
    OnlyBroadcasts,
    /// [`SharesAsids`](crate::rule_mutants::SharesAsids).
    SharesAsids,
    /// [`KeepsItsAsids`](crate::rule_mutants::KeepsItsAsids).
    KeepsItsAsids,
}

impl Mutant {
    /// All of them.
    pub const ALL: [Mutant; 32] = [
        Mutant::Caller,
        Mutant::CountAfterGive,
        Mutant::StaleSlot,
        Mutant::JudgeBeforeTaking,
        Mutant::BackupFirst,
        Mutant::NoSecondLook,
        Mutant::WildcardHolds,
        Mutant::DropInInterrupt,
        Mutant::EmptiedEarly,
        Mutant::LooksTooSoon,
        Mutant::DropBeforeLoad,
        Mutant::EvictsIsolated,
        Mutant::LooksAtPrev,
        Mutant::SkipsLazies,
        Mutant::LeavesAndEnters,
        Mutant::OthersAreLazy,
        Mutant::ResetsMask,
        Mutant::TrustsUsers,
        Mutant::Unpinned,
        Mutant::KeepsItsTlb,
        Mutant::ForgetsLazies,
        Mutant::FlushesItsOwn,
        Mutant::NeverFlushes,
        Mutant::SharesReserved,
        Mutant::KeepsOldContexts,
        Mutant::ReservesOnce,
        Mutant::SleepsOnItsTlb,
        Mutant::SkipsTlbsync,
        Mutant::SyncsElsewhere,
        Mutant::OnlyBroadcasts,
        Mutant::SharesAsids,
        Mutant::KeepsItsAsids,
    ];

    /// Its name in files.
    pub const fn name(self) -> &'static str {
        match self {
            Mutant::Caller => "caller",
            Mutant::CountAfterGive => "count-after-give",
            Mutant::StaleSlot => "stale-slot",
            Mutant::JudgeBeforeTaking => "judge-before-taking",
            Mutant::BackupFirst => "backup-first",
            Mutant::NoSecondLook => "no-second-look",
            Mutant::WildcardHolds => "wildcard-holds",
            Mutant::DropInInterrupt => "drop-in-interrupt",
            Mutant::EmptiedEarly => "emptied-early",
            Mutant::LooksTooSoon => "looks-too-soon",
            Mutant::DropBeforeLoad => "drop-before-load",
            Mutant::EvictsIsolated => "evicts-isolated",
            Mutant::LooksAtPrev => "looks-at-prev",
            Mutant::SkipsLazies => "skips-lazies",
            Mutant::LeavesAndEnters => "leaves-and-enters",
            Mutant::OthersAreLazy => "others-are-lazy",
            Mutant::ResetsMask => "resets-mask",
            Mutant::TrustsUsers => "trusts-users",
            Mutant::Unpinned => "unpinned",
            Mutant::KeepsItsTlb => "keeps-its-tlb",
            Mutant::ForgetsLazies => "forgets-lazies",
            Mutant::FlushesItsOwn => "flushes-its-own",
            Mutant::NeverFlushes => "never-flushes",
            Mutant::SharesReserved => "shares-reserved",
            Mutant::KeepsOldContexts => "keeps-old-contexts",
            Mutant::ReservesOnce => "reserves-once",
            Mutant::SleepsOnItsTlb => "sleeps-on-its-tlb",
            Mutant::SkipsTlbsync => "skips-tlbsync",
            Mutant::SyncsElsewhere => "syncs-elsewhere",
            Mutant::OnlyBroadcasts => "only-broadcasts",
            Mutant::SharesAsids => "shares-asids",
            Mutant::KeepsItsAsids => "keeps-its-asids",
        }
    }

    /// The rules that it is a mutant of, if it is none of a strategy. It runs there only, under refcount only
    /// ([`LooksAtPrev`](crate::rule_mutants::LooksAtPrev) says why not).
    pub const fn rules(self) -> Option<Rules> {
        match self {
            Mutant::Caller
            | Mutant::CountAfterGive
            | Mutant::StaleSlot
            | Mutant::JudgeBeforeTaking
            | Mutant::BackupFirst
            | Mutant::NoSecondLook
            | Mutant::WildcardHolds
            | Mutant::DropInInterrupt
            | Mutant::EmptiedEarly
            | Mutant::LooksTooSoon
            | Mutant::DropBeforeLoad
            | Mutant::EvictsIsolated => None,
            Mutant::SkipsLazies => Some(Rules::X86Linux612),
            Mutant::LeavesAndEnters | Mutant::LooksAtPrev => Some(Rules::Plain),
            Mutant::OthersAreLazy
            | Mutant::ResetsMask
            | Mutant::TrustsUsers
            | Mutant::Unpinned
            | Mutant::KeepsItsTlb => Some(Rules::PowerRadix),
            Mutant::ForgetsLazies
            | Mutant::FlushesItsOwn
            | Mutant::NeverFlushes
            | Mutant::SharesReserved
            | Mutant::KeepsOldContexts
            | Mutant::ReservesOnce
            | Mutant::SleepsOnItsTlb => Some(Rules::Arm64),
            Mutant::SkipsTlbsync
            | Mutant::SyncsElsewhere
            | Mutant::OnlyBroadcasts
            | Mutant::SharesAsids
            | Mutant::KeepsItsAsids => Some(Rules::X86Broadcast),
        }
    }
}

impl FromStr for Mutant {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        by_name("mutant", name, &Mutant::ALL, Mutant::name)
    }
}

impl fmt::Display for Mutant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The first trap: `drop_mm` names the mm before the reference is counted, and the CPU may drop it at once (B03).
#[derive(Clone, Copy, Debug)]
pub struct CountAfterGive;

impl<P: Platform> ConvertSteps<P> for CountAfterGive {
    fn raise_count(_mm: &MmCore<P>, _references: usize) {}

    fn give(slot: &HazardSlot<P>, mm: &MmCore<P>, _seen: *mut MmCore<P>, _drop: impl FnMut(CountRef<P>)) {
        // No test with this mutant leaves a CPU two references.
        slot.give(MmPtr::from(mm).as_ptr());
        // SAFETY: late, which is the bug, but it is the reference that was handed out.
        unsafe { mm.count_add(1) };
    }

    fn lower_count(_mm: &MmCore<P>, _references: usize) {}
}

/// The second trap: whether the CPU is done with what its `drop_mm` named is told from a look that was before (B04).
#[derive(Clone, Copy, Debug)]
pub struct StaleSlot;

impl<P: Platform> ConvertSteps<P> for StaleSlot {
    fn is_done_with(_slot: &HazardSlot<P>, older: *mut MmCore<P>, seen: *mut MmCore<P>) -> bool {
        seen != older
    }
}

/// The third trap, and the scheme as it was posted in January 2022: the older mm is judged before its reference is taken,
/// and its address may stand for another mm by then.
#[derive(Clone, Copy, Debug)]
pub struct JudgeBeforeTaking;

impl<P: Platform> ConvertSteps<P> for JudgeBeforeTaking {
    fn give(slot: &HazardSlot<P>, mm: &MmCore<P>, _seen: *mut MmCore<P>, mut drop: impl FnMut(CountRef<P>)) {
        let mm = MmPtr::from(mm);
        loop {
            let older = slot.drop_mm();
            if older.is_some() && slot.lazy().scan() != mm.as_ptr() {
                // SAFETY: it was counted for the CPU, which does not need it.
                return drop(unsafe { CountRef::new(mm) });
            }
            if slot.give_in_place_of(older.map_or(null_mut(), MmPtr::as_ptr), mm.as_ptr()) {
                if let Some(older) = older {
                    // SAFETY: not; that is the bug.
                    drop(unsafe { CountRef::new(older) });
                }
                return;
            }
        }
    }
}

/// A reclaimer looks at the backup nodes before the slots, and misses what is promoted between the two looks (L6).
#[derive(Clone, Copy, Debug)]
pub struct BackupFirst;

impl<P: Platform> GeneralSteps<P> for BackupFirst {
    fn holds(platform: P, cpu: &GeneralSlot<P>, mm: *mut MmCore<P>) -> bool {
        cpu.scan_backup(mm) || cpu.slot_holds(platform, mm)
    }
}

/// The wildcard of a CPU that is about to acquire is taken for a holder, and not waited for.
#[derive(Clone, Copy, Debug)]
pub struct WildcardHolds;

impl<P: Platform> GeneralSteps<P> for WildcardHolds {
    fn holds(_platform: P, cpu: &GeneralSlot<P>, mm: *mut MmCore<P>) -> bool {
        let held = cpu.scan_slot();
        held == mm || held == wildcard::<P>() || cpu.scan_backup(mm)
    }
}

/// Whoever makes an mm wait does not look once more: the last holder may have left before, and nobody looks again.
#[derive(Clone, Copy, Debug)]
pub struct NoSecondLook;

impl<P: Platform> GeneralSteps<P> for NoSecondLook {
    fn look_again(_collect: impl FnOnce()) {}
}

/// The evict interrupt as it was posted: it ends with a drop of what was left with the CPU, in whatever context it runs (I11).
#[derive(Clone, Copy, Debug)]
pub struct DropInInterrupt;

impl<R: 'static> ConvertSteps<Lab<R>> for DropInInterrupt
where
    Lab<R>: Platform<MmData = MmData>,
{
    fn unpublish(slot: &HazardSlot<Lab<R>>) {
        slot.lazy().unpublish();
        // A switch leaves it to its tail, as it should.
        if !Lab::<R>::NEW.context().in_hardirq {
            return;
        }
        if let Some(left) = MmPtr::new(slot.give(null_mut())) {
            let mm: NonNull<Mm<Lab<R>, Convert<DropInInterrupt>>> =
                NonNull::new(left.as_ptr().cast()).expect("not null");
            // SAFETY: the reference was counted for whoever takes it out of drop_mm.
            drop(unsafe { ARef::from_raw(mm) });
        }
    }
}

/// The slot is emptied before the MMU has left, in the first switch already, and filled again before interrupts come on (I7).
#[derive(Clone, Copy, Debug)]
pub struct EmptiedEarly;

impl<P: Platform> ConvertSteps<P> for EmptiedEarly {
    fn publish(slot: &HazardSlot<P>, mm: *mut MmCore<P>) {
        slot.lazy().publish(mm);
        slot.lazy().unpublish();
        slot.lazy().publish(mm);
    }
}

/// Each end of a borrow looks through all slots, whether or not anything is to be freed (I7).
#[derive(Clone, Copy, Debug)]
pub struct LooksTooSoon;

impl<P: IpisInterrupt> LazyTlb<P> for LooksTooSoon {
    type CpuState = LazySlot<P>;
    type MmState = ();
    type Shared = ();

    fn name(&self) -> &'static str {
        "looks-too-soon"
    }

    fn mmgrab_lazy_tlb(&self, platform: P, this: &LazySlot<P>, shared: &(), mm: &MmCore<P>) {
        LazyTlb::<P>::mmgrab_lazy_tlb(&UNFENCED, platform, this, shared, mm);
    }

    fn leave_lazy_tlb(&self, platform: P, this: &LazySlot<P>) {
        LazyTlb::<P>::leave_lazy_tlb(&UNFENCED, platform, this);
    }

    fn cleanup_lazy_tlbs(&self, host: &impl Host<P, Self>, mm: MmPtr<P>) -> Freeing {
        // SAFETY: it is freed by who this says, and only then.
        let core = unsafe { mm.as_ref() };
        host.evict_lazies(core, Among::All, |cpu| host.cpu_state(cpu).scan() == mm.as_ptr());
        Freeing::Now
    }

    fn borrow_is_over(&self, host: &impl Host<P, Self>) {
        for cpu in 0..host.platform().nr_cpu_ids() {
            host.cpu_state(CpuId::new(cpu)).scan();
        }
    }
}

const UNFENCED: HazardIpi = HazardIpi { fences: false };

impl<P: IpisInterrupt> Accounted<P> for LooksTooSoon {
    fn publishes(&self, cpu: &LazySlot<P>) -> Published<P> {
        Published::slot(cpu.lazy_mm())
    }
}

/// The mm that a CPU had loaded is dropped as soon as the next one has taken its place, and its tables are loaded still (C2).
#[derive(Clone, Copy, Debug)]
pub struct DropBeforeLoad;

impl<P: Platform> ActivateSteps<P> for DropBeforeLoad {
    fn release(host: &impl Host<P, PerCpu<Self>>, _this: &OwnedMm<P>, last: MmPtr<P>) {
        // SAFETY: the CPU owned it, and its word names another mm now.
        host.mmdrop(unsafe { CountRef::new(last) });
    }
}

/// CPUs that are to be left alone are interrupted like all others when an mm dies that they borrow.
#[derive(Clone, Copy, Debug)]
pub struct EvictsIsolated;

/// What [`EvictsIsolated`] is in all other steps.
const AT_ONCE: HazardDeadline = HazardDeadline { deadline: Some(0), collector: Collector::Tail };

impl<P: Clock + IpisInterrupt> PartOf<EvictsIsolated, P> for HazardDeadline {
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

impl<P: Clock + IpisInterrupt> LazyTlb<P> for EvictsIsolated {
    type CpuState = LazySlot<P>;
    type MmState = Waits<P>;
    type Shared = Waiting<P>;

    fn name(&self) -> &'static str {
        "evicts-isolated"
    }

    fn mmgrab_lazy_tlb(&self, platform: P, this: &LazySlot<P>, shared: &Waiting<P>, mm: &MmCore<P>) {
        AT_ONCE.mmgrab_lazy_tlb(platform, this, shared, mm);
    }

    fn leave_lazy_tlb(&self, platform: P, this: &LazySlot<P>) {
        AT_ONCE.leave_lazy_tlb(platform, this);
    }

    fn borrow_is_over(&self, host: &impl Host<P, Self>) {
        AT_ONCE.borrow_is_over(&Part::new(host));
    }

    fn cleanup_lazy_tlbs(&self, host: &impl Host<P, Self>, mm: MmPtr<P>) -> Freeing {
        if host.platform().context().may_wait_for_cpus() {
            // SAFETY: it is freed by who the strategy says, and only then.
            let core = unsafe { mm.as_ref() };
            host.evict_lazies(core, Among::All, |cpu| host.cpu_state(cpu).scan() == mm.as_ptr());
        }
        AT_ONCE.cleanup_lazy_tlbs(&Part::new(host), mm)
    }

    fn collect(&self, host: &impl Host<P, Self>) {
        AT_ONCE.collect(&Part::new(host));
    }

    fn spares_isolated(&self) -> bool {
        true
    }

    fn may_free(&self, context: Context) -> bool {
        LazyTlb::<P>::may_free(&AT_ONCE, context)
    }
}

impl<P: CanShoot + Clock> Accounted<P> for EvictsIsolated {
    fn needs_worker(&self) -> bool {
        true
    }

    fn publishes(&self, cpu: &LazySlot<P>) -> Published<P> {
        Published::slot(cpu.lazy_mm())
    }

    fn waiting(&self, shared: &Waiting<P>) -> usize {
        shared.len()
    }

    fn waits_for(&self, cpu: &LazySlot<P>, borrows: bool, isolated: bool) -> bool {
        Accounted::<P>::waits_for(&AT_ONCE, cpu, borrows, isolated)
    }
}
