//! Strategies and rules with one step wrong: planted bugs of logic, which the checker must find.
//!
//! The steps of each are a type's, [`Wrong`]'s here, and which of them is wrong is known when a model runs: a type for each
//! would have everything compiled once more for each. Wrong orderings need no mutant: the lab drops the access with a given
//! label.

use core::cell::Cell;
use core::fmt;
use core::ptr::{NonNull, null_mut};
use core::str::FromStr;

use lazytlb_core::lazy_tlb::Host;
use lazytlb_core::mm::{ARef, CountRef, Mm, MmCore, MmPtr};
use lazytlb_core::platform::Platform;
use lazytlb_hazard::convert::{Convert, ConvertSteps, HazardSlot, Published as Right};
use lazytlb_hazard::general::{GeneralSlot, GeneralSteps, SlotsFirst, wildcard};
use lazytlb_refcount::per_cpu::{ActivateSteps, OwnedMm, PerCpu};

use crate::platform::{Lab, MmData};
use crate::strategies::{Rules, Strategy, UnknownName, by_name};

/// Makes the list of mutants: the one place that has all of them.
macro_rules! mutants {
    ($($(#[$doc:meta])* $mutant:ident: $name:literal, $of:expr;)*) => {
        /// What is wrong.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum Mutant {
            $($(#[$doc])* $mutant,)*
        }

        impl Mutant {
            /// All of them.
            pub const ALL: &'static [Mutant] = &[$(Mutant::$mutant),*];

            /// Its name in files.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Mutant::$mutant => $name,)*
                }
            }

            /// Whose step is wrong.
            pub(crate) const fn of(self) -> Of {
                match self {
                    $(Mutant::$mutant => $of,)*
                }
            }
        }
    };
}

/// Whose step a mutant has wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Of {
    Nobody,
    Convert,
    General,
    Ipi,
    PerCpu,
    Deadline,
    Batched,
    Rules(Rules),
}

mutants! {
    /// Nothing in the library: the test's own statements break a rule.
    Caller: "caller", Of::Nobody;
    /// Where tasks roam: who is given a CPU stays in the queue, and another CPU takes it, too (`SchedInv` of ctxsw.tla).
    StaysQueued: "stays-queued", Of::Nobody;
    /// The first trap: `drop_mm` names the mm before the reference is counted, and the CPU may drop it at once (B03).
    CountAfterGive: "count-after-give", Of::Convert;
    /// The second trap: whether the CPU is done with what its `drop_mm` named is told from a look that was before (B04).
    StaleSlot: "stale-slot", Of::Convert;
    /// The third trap, and the scheme as it was posted in January 2022: the older mm is judged before its reference is taken,
    /// and its address may stand for another mm by then.
    JudgeBeforeTaking: "judge-before-taking", Of::Convert;
    /// A reclaimer looks at the backup nodes before the slots, and misses what is promoted between the two looks (L6).
    BackupFirst: "backup-first", Of::General;
    /// Whoever makes an mm wait does not look once more: the last holder may have left before, and nobody looks again.
    NoSecondLook: "no-second-look", Of::General;
    /// The wildcard of a CPU that is about to acquire is taken for a holder, and not waited for.
    WildcardHolds: "wildcard-holds", Of::General;
    /// The evict interrupt as it was posted: it ends with a drop of what was left with the CPU, in whatever context it runs (I11).
    DropInInterrupt: "drop-in-interrupt", Of::Convert;
    /// The slot is emptied before the MMU has left, in the first switch already, and filled again before interrupts come on (I7).
    EmptiedEarly: "emptied-early", Of::Convert;
    /// Each end of a borrow looks through all slots, whether or not anything is to be freed (I7).
    LooksTooSoon: "looks-too-soon", Of::Ipi;
    /// The mm that a CPU had loaded is dropped as soon as the next one has taken its place, and its tables are loaded still (C2).
    DropBeforeLoad: "drop-before-load", Of::PerCpu;
    /// CPUs that are to be left alone are interrupted like all others when an mm dies that they borrow, and the strategy says that
    /// they are not (S11).
    EvictsIsolated: "evicts-isolated", Of::Ipi;
    /// When an mm's time has come it is freed, whoever borrows it still: a CPU that is to be left alone was not interrupted (S12).
    TimeIsUp: "time-is-up", Of::Deadline;
    /// The end of a borrow frees nothing: what waits for an isolated CPU waits for ever, once the worker has come in vain (S13).
    TailForgets: "tail-forgets", Of::Deadline;
    /// One round frees all that waits, and interrupts those of one mm's mask (S14).
    OneMask: "one-mask", Of::Batched;
    /// A switch looks into the mm that it leaves, as powerpc's does in kernels built for debugging
    /// (`VM_WARN_ON_ONCE(!cpumask_test_cpu(cpu, mm_cpumask(prev)))`), and as s390's does always (C1).
    LooksAtPrev: "looks-at-prev", Of::Rules(Rules::Plain);
    /// x86 of 6.12: lazy CPUs are left alone even when tables are freed (B19).
    SkipsLazies: "skips-lazies", Of::Rules(Rules::X86Linux612);
    /// x86 of 6.12 as it is: a CPU leaves the mask of an mm before its MMU leaves the mm (C5).
    LeavesMaskFirst: "leaves-mask-first", Of::Rules(Rules::X86Linux612);
    /// A CPU knows by an mm's address which of its slots has the mm's translations, and the address is used again (B42).
    KnowsByAddress: "knows-by-address", Of::Rules(Rules::X86Linux612);
    /// A switch between two threads of one process takes the CPU out of the mask and puts it in again (B23).
    LeavesAndEnters: "leaves-and-enters", Of::Rules(Rules::Plain);
    /// Who trims takes every other CPU for a lazy one, which has left after the interrupt, and makes the mask its own (B07).
    OthersAreLazy: "others-are-lazy", Of::Rules(Rules::PowerRadix);
    /// Who trims makes the mask its own and interrupts nobody (B08).
    ResetsMask: "resets-mask", Of::Rules(Rules::PowerRadix);
    /// A single user is taken for the only one that can load the mm: nobody is asked to flush (B41).
    TrustsUsers: "trusts-users", Of::Rules(Rules::PowerRadix);
    /// The flush may go on on another CPU than it began on (B10).
    Unpinned: "unpinned", Of::Rules(Rules::PowerRadix);
    /// A CPU keeps what it has cached while it is offline (B06).
    KeepsItsTlb: "keeps-its-tlb", Of::Rules(Rules::PowerRadix);
    /// At a rollover nothing is reserved: a CPU that comes back from lazy mode goes on with an ASID that its mm has no more (B21).
    ForgetsLazies: "forgets-lazies", Of::Rules(Rules::Arm64);
    /// As [`ForgetsLazies`](Self::ForgetsLazies), and who flushes an mm that it borrows uses the ASID that it borrowed it with (B22).
    FlushesItsOwn: "flushes-its-own", Of::Rules(Rules::Arm64);
    /// After a rollover a CPU goes on with what it has cached under ASIDs that others get now (A01).
    NeverFlushes: "never-flushes", Of::Rules(Rules::Arm64);
    /// An ASID that some CPU is on is handed out to another mm (A02).
    SharesReserved: "shares-reserved", Of::Rules(Rules::Arm64);
    /// An mm that has had a context once keeps it, whatever the generation (A03).
    KeepsOldContexts: "keeps-old-contexts", Of::Rules(Rules::Arm64);
    /// An mm keeps its reserved ASID through one rollover and not through the next: it is reserved under its old name still (A04).
    ReservesOnce: "reserves-once", Of::Rules(Rules::Arm64);
    /// A CPU that goes offline keeps its translations (B06c).
    SleepsOnItsTlb: "sleeps-on-its-tlb", Of::Rules(Rules::Arm64);
    /// A flush does not wait for its broadcast.
    SkipsTlbsync: "skips-tlbsync", Of::Rules(Rules::X86Broadcast);
    /// A flush may go on on another CPU than it began on, whose TLBSYNC waits for nothing.
    SyncsElsewhere: "syncs-elsewhere", Of::Rules(Rules::X86Broadcast);
    /// An mm that has got a global ASID is flushed by broadcast alone at once, while CPUs run it under one of their own.
    OnlyBroadcasts: "only-broadcasts", Of::Rules(Rules::X86Broadcast);
    /// When all global ASIDs are in use, they are handed out a second time.
    SharesAsids: "shares-asids", Of::Rules(Rules::X86Broadcast);
    /// A CPU keeps what it has cached under global ASIDs while it is offline (B06).
    KeepsItsAsids: "keeps-its-asids", Of::Rules(Rules::X86Broadcast);
}

impl Mutant {
    /// The rules that it is a mutant of, if it is none of a strategy. It runs there only, under
    /// [`strategy`](Self::strategy) only.
    pub const fn rules(self) -> Option<Rules> {
        match self.of() {
            Of::Rules(rules) => Some(rules),
            _ => None,
        }
    }

    /// The strategy that a mutant of rules runs under: reference counting, which needs nothing of the rules, so that what is
    /// found is theirs. Where that hides the bug, because a borrow keeps the mm, one that evicts.
    pub const fn strategy(self) -> Strategy {
        match self {
            Mutant::LooksAtPrev | Mutant::KnowsByAddress => Strategy::HazardIpi,
            _ => Strategy::Refcount,
        }
    }

    /// Runs a model with it planted.
    pub(crate) fn planted<R>(mutant: Option<Mutant>, f: impl FnOnce() -> R) -> R {
        let before = PLANTED.replace(mutant);
        let result = f();
        PLANTED.set(before);
        result
    }

    /// Whether it is planted in the model that runs.
    pub(crate) fn is_planted(self) -> bool {
        PLANTED.get() == Some(self)
    }
}

thread_local! {
    static PLANTED: Cell<Option<Mutant>> = const { Cell::new(None) };
}

impl FromStr for Mutant {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        by_name("mutant", name, Mutant::ALL, Mutant::name)
    }
}

impl fmt::Display for Mutant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The steps of strategies and rules, of which the one is wrong that is planted.
#[derive(Clone, Copy, Debug)]
pub struct Wrong;

impl<R: 'static> ConvertSteps<Lab<R>> for Wrong
where
    Lab<R>: Platform<MmData = MmData>,
{
    fn publish(slot: &HazardSlot<Lab<R>>, mm: *mut MmCore<Lab<R>>) {
        slot.lazy().publish(mm);
        if Mutant::EmptiedEarly.is_planted() {
            slot.lazy().unpublish();
            slot.lazy().publish(mm);
        }
    }

    fn unpublish(slot: &HazardSlot<Lab<R>>) {
        slot.lazy().unpublish();
        // A switch leaves it to its tail, as it should.
        if !Mutant::DropInInterrupt.is_planted() || !Lab::<R>::NEW.context().in_hardirq {
            return;
        }
        if let Some(left) = MmPtr::new(slot.give(null_mut())) {
            let mm: NonNull<Mm<Lab<R>, Convert<Wrong>>> = NonNull::new(left.as_ptr().cast()).expect("not null");
            // SAFETY: the reference was counted for whoever takes it out of drop_mm.
            drop(unsafe { ARef::from_raw(mm) });
        }
    }

    fn raise_count(mm: &MmCore<Lab<R>>, references: usize) {
        if !Mutant::CountAfterGive.is_planted() {
            Right::raise_count(mm, references);
        }
    }

    fn lower_count(mm: &MmCore<Lab<R>>, references: usize) {
        if !Mutant::CountAfterGive.is_planted() {
            Right::lower_count(mm, references);
        }
    }

    fn give(slot: &HazardSlot<Lab<R>>, mm: &MmCore<Lab<R>>, drop: impl FnMut(CountRef<Lab<R>>)) {
        if Mutant::CountAfterGive.is_planted() {
            // No test with this mutant leaves a CPU two references.
            slot.give(MmPtr::from(mm).as_ptr());
            // SAFETY: late, which is the bug, but it is the reference that was handed out.
            unsafe { mm.count_add(1) };
        } else if Mutant::JudgeBeforeTaking.is_planted() {
            judge_before_taking(slot, mm, drop);
        } else if Mutant::StaleSlot.is_planted() {
            Stale::give(slot, mm, drop);
        } else {
            Right::give(slot, mm, drop);
        }
    }
}

/// [`Mutant::StaleSlot`], for the giving that asks it.
#[derive(Debug)]
struct Stale;

impl<P: Platform> ConvertSteps<P> for Stale {
    fn is_done_with(_slot: &HazardSlot<P>, older: *mut MmCore<P>, seen: *mut MmCore<P>) -> bool {
        seen != older
    }
}

fn judge_before_taking<P: Platform>(slot: &HazardSlot<P>, mm: &MmCore<P>, mut drop: impl FnMut(CountRef<P>)) {
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

impl<P: Platform> GeneralSteps<P> for Wrong {
    fn holds(platform: P, cpu: &GeneralSlot<P>, mm: *mut MmCore<P>) -> bool {
        if Mutant::BackupFirst.is_planted() {
            cpu.scan_backup(mm) || cpu.slot_holds(platform, mm)
        } else if Mutant::WildcardHolds.is_planted() {
            let held = cpu.scan_slot();
            held == mm || held == wildcard::<P>() || cpu.scan_backup(mm)
        } else {
            SlotsFirst::holds(platform, cpu, mm)
        }
    }

    fn look_again(collect: impl FnOnce()) {
        if !Mutant::NoSecondLook.is_planted() {
            <SlotsFirst as GeneralSteps<P>>::look_again(collect);
        }
    }
}

impl<P: Platform> ActivateSteps<P> for Wrong {
    /// [`Mutant::DropBeforeLoad`].
    fn release(host: &impl Host<P, PerCpu<Self>>, _this: &OwnedMm<P>, last: MmPtr<P>) {
        // SAFETY: the CPU owned it, and its word names another mm now.
        host.mmdrop(unsafe { CountRef::new(last) });
    }
}
