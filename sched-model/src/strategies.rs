//! The strategies that the lab runs, the machines it runs them on, and which of them claims to work where.

use core::fmt;
use core::str::FromStr;

use lazytlb::any::{AnyLazyTlb, AnyPlatform};
use lazytlb_core::lazy_tlb::LazyTlb;
use lazytlb_core::mm::{MmCore, MmPtr};
use lazytlb_core::no_lazy::NoLazy;
use lazytlb_core::platform::{Clock, Platform, Worker};
use lazytlb_epoch::{EpochPinned, EpochQs};
use lazytlb_hazard::convert::{Convert, ConvertSteps};
use lazytlb_hazard::deadline::Collector;
use lazytlb_hazard::general::{General, GeneralSteps};
use lazytlb_hazard::{GeneralHazard, HazardConvert, HazardDeadline, HazardIpi};
use lazytlb_refcount::per_cpu::{ActivateSteps, PerCpu};
use lazytlb_refcount::{Refcount, RefcountDeferred, RefcountPerCpu};
use lazytlb_shootdown::{CanShoot, LazyFix, Shootdown, ShootdownBatched, UsersOnly};

/// Makes the list of strategies: the one place that has all of them.
macro_rules! strategies {
    ($($(#[$doc:meta])* $variant:ident: $name:literal, $default:expr;)*) => {
        /// A strategy of the library, or a baseline of the lab.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum Strategy {
            $($(#[$doc])* $variant,)*
        }

        impl Strategy {
            /// All that can be named.
            pub const KNOWN: &'static [Strategy] = &[$(Strategy::$variant),*];

            /// Its name in files and on the command line.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Strategy::$variant => $name,)*
                }
            }

            /// The same, chosen at boot; none for what only the lab has.
            pub fn at_boot(self) -> Option<AnyLazyTlb> {
                match self {
                    $(Strategy::$variant => AtBoot::at_boot($default),)*
                }
            }

            /// Does something with it.
            pub fn with<P: CanShoot + Clock, A: WithStrategy<P>>(self, action: A) -> A::Output {
                match self {
                    $(Strategy::$variant => action.call($default),)*
                }
            }
        }
    };
}

strategies! {
    /// [`NoLazy`].
    NoLazy: "no-lazy", NoLazy;
    /// [`Unprotected`].
    Unprotected: "unprotected", Unprotected;
    /// [`Refcount`].
    Refcount: "refcount", Refcount;
    /// [`RefcountDeferred`].
    RefcountDeferred: "refcount-deferred", RefcountDeferred;
    /// [`RefcountPerCpu`].
    RefcountPerCpu: "refcount-per-cpu", RefcountPerCpu::new();
    /// [`Shootdown`].
    Shootdown: "shootdown", Shootdown { debug_shoot_lazies: false };
    /// [`Shootdown`] with its debug round.
    ShootdownDebug: "shootdown-debug", Shootdown { debug_shoot_lazies: true };
    /// [`ShootdownBatched`], two at a time.
    ShootdownBatched: "shootdown-batched", ShootdownBatched { batch: 2, linger: 10 };
    /// [`UsersOnly`].
    UsersOnly: "users-only", UsersOnly;
    /// [`LazyFix`].
    LazyFix: "lazyfix", LazyFix;
    /// [`HazardConvert`].
    HazardConvert: "hazard-convert", HazardConvert::new();
    /// [`HazardIpi`].
    HazardIpi: "hazard-ipi", HazardIpi::new();
    /// [`HazardIpi`] without the fences that nothing needs.
    HazardIpiUnfenced: "hazard-ipi-unfenced", HazardIpi { fences: false };
    /// [`HazardDeadline`].
    HazardDeadline: "hazard-deadline", HazardDeadline::new();
    /// [`HazardDeadline`], the worker collecting.
    HazardDeadlineWorker: "hazard-deadline-worker", HazardDeadline { deadline: Some(10), collector: Collector::Worker };
    /// [`HazardDeadline`] that waits for nobody but isolated CPUs.
    HazardDeadlineNow: "hazard-deadline-now", HazardDeadline { deadline: Some(0), collector: Collector::Tail };
    /// [`HazardDeadline`] that never interrupts, the tail collecting.
    HazardDeadlineNever: "hazard-deadline-never", HazardDeadline { deadline: None, collector: Collector::Tail };
    /// [`GeneralHazard`].
    GeneralHazard: "general-hazard", GeneralHazard::new();
    /// [`EpochQs`].
    EpochQs: "epoch-qs", EpochQs { evict_at_idle: false };
    /// [`EpochQs`] that leaves at idle.
    EpochQsIdle: "epoch-qs-idle", EpochQs { evict_at_idle: true };
    /// [`EpochPinned`].
    EpochPinned: "epoch-pinned", EpochPinned { evict_at_idle: false };
    /// [`EpochPinned`] that leaves at idle.
    EpochPinnedIdle: "epoch-pinned-idle", EpochPinned { evict_at_idle: true };
}

/// A strategy as a value of the boot-time enum, if it has one.
trait AtBoot {
    fn at_boot(self) -> Option<AnyLazyTlb>;
}

impl AtBoot for Unprotected {
    fn at_boot(self) -> Option<AnyLazyTlb> {
        None
    }
}

macro_rules! at_boot {
    ($($strategy:ident)*) => {$(
        impl AtBoot for $strategy {
            fn at_boot(self) -> Option<AnyLazyTlb> {
                Some(AnyLazyTlb::$strategy(self))
            }
        }
    )*};
}

at_boot!(NoLazy Refcount RefcountDeferred RefcountPerCpu Shootdown ShootdownBatched UsersOnly LazyFix);
at_boot!(HazardConvert HazardIpi HazardDeadline GeneralHazard EpochQs EpochPinned);

/// Something that is done with a strategy, whichever it is.
pub trait WithStrategy<P: Platform> {
    /// What comes of it.
    type Output;

    /// Does it.
    fn call<S: Accounted<P>>(self, strategy: S) -> Self::Output;
}

impl Strategy {
    /// Those that are run where nobody names one: all but variants of others.
    pub fn all() -> impl Iterator<Item = Strategy> {
        use Strategy::*;
        let variants = [
            ShootdownDebug,
            HazardIpiUnfenced,
            HazardDeadlineWorker,
            HazardDeadlineNow,
            HazardDeadlineNever,
            EpochQsIdle,
            EpochPinnedIdle,
        ];
        Strategy::KNOWN.iter().copied().filter(move |strategy| !variants.contains(strategy))
    }

    /// Whether an mm that nobody references any more can wait to be freed.
    pub const fn frees_later(self) -> bool {
        use Strategy::*;
        matches!(
            self,
            RefcountDeferred
                | ShootdownBatched
                | HazardDeadline
                | HazardDeadlineWorker
                | HazardDeadlineNow
                | HazardDeadlineNever
                | GeneralHazard
                | EpochQs
                | EpochQsIdle
                | EpochPinned
                | EpochPinnedIdle
        )
    }

    /// Whether the rules meet the preconditions that the strategy states, so that it must pass there.
    pub const fn claims(self, rules: Rules) -> bool {
        match self {
            // They need a mask that covers every borrower.
            Strategy::Shootdown
            | Strategy::ShootdownDebug
            | Strategy::ShootdownBatched
            | Strategy::UsersOnly
            | Strategy::LazyFix => rules.mask_covers_lazy(),
            // It states none that any machine could meet.
            Strategy::Unprotected => false,
            _ => true,
        }
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The rules of a machine's MMU; see [`lazytlb_core::mm_switch`] and [`lazytlb_shootdown`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Rules {
    /// [`IpiFlush`](lazytlb_core::mm_switch::IpiFlush): a flush interrupts, and moves lazy MMUs away.
    Ipi,
    /// [`IpiUnlazy`](lazytlb_core::mm_switch::IpiUnlazy): a flush interrupts, and ends borrows.
    IpiUnlazy,
    /// [`BroadcastFlush`](lazytlb_core::mm_switch::BroadcastFlush): a flush interrupts nobody.
    Broadcast,
    /// [`X86_6_12`](lazytlb_shootdown::X86_6_12): generations, an exact mask, lazy CPUs skipped.
    X86Linux612,
    /// [`X86_6_14`](lazytlb_shootdown::X86_6_14): generations, a lazily kept mask, CPUs on other mms skipped.
    X86Linux614,
    /// [`X86Broadcast`](lazytlb_shootdown::X86Broadcast): as 6.14 until the mm runs on two CPUs, then broadcasts by an ASID
    /// for life.
    X86Broadcast,
    /// [`Plain`](lazytlb_shootdown::Plain): no tags, a flush interrupts everybody in the mask.
    Plain,
    /// [`PowerRadix`](lazytlb_shootdown::PowerRadix): tags for life, broadcasts, masks that are trimmed.
    PowerRadix,
    /// [`Arm64`](lazytlb_shootdown::Arm64): broadcasts by ASID, ASIDs in generations.
    Arm64,
}

impl Rules {
    /// Those of `core`: an architecture's rule cut down to one idea. Traces are replayed on them.
    pub const SIMPLE: [Rules; 3] = [Rules::Ipi, Rules::IpiUnlazy, Rules::Broadcast];

    /// Those that a strategy with a step wrong is run on.
    pub const OF_MUTANTS: [Rules; 2] = [Rules::Ipi, Rules::Broadcast];

    /// Those of `shootdown`: what architectures do about cached translations.
    pub const OF_ARCHITECTURES: [Rules; 6] =
        [Rules::Plain, Rules::X86Linux612, Rules::X86Linux614, Rules::X86Broadcast, Rules::PowerRadix, Rules::Arm64];

    /// All of them.
    pub const ALL: [Rules; 9] = [
        Rules::Ipi,
        Rules::IpiUnlazy,
        Rules::Broadcast,
        Rules::Plain,
        Rules::X86Linux612,
        Rules::X86Linux614,
        Rules::X86Broadcast,
        Rules::PowerRadix,
        Rules::Arm64,
    ];

    /// Its name in files and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Rules::Ipi => "ipi-flush",
            Rules::IpiUnlazy => "ipi-unlazy",
            Rules::Broadcast => "broadcast-flush",
            Rules::X86Linux612 => "x86-6.12",
            Rules::X86Linux614 => "x86-6.14",
            Rules::X86Broadcast => "x86-broadcast",
            Rules::Plain => "plain",
            Rules::PowerRadix => "power-radix",
            Rules::Arm64 => "arm64",
        }
    }

    /// Whether `mm_cpumask` holds every CPU whose `active_mm` is the mm.
    pub const fn mask_covers_lazy(self) -> bool {
        !matches!(self, Rules::Ipi | Rules::X86Linux612 | Rules::X86Linux614 | Rules::X86Broadcast)
    }
}

impl fmt::Display for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that stands for nothing here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnknownName {
    /// What was looked for.
    what: &'static str,
    /// The name.
    name: String,
    /// The names there are.
    known: Vec<&'static str>,
}

impl fmt::Display for UnknownName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unknown {} `{}`; there are: {}", self.what, self.name, self.known.join(", "))
    }
}

impl core::error::Error for UnknownName {}

pub(crate) fn by_name<T: Copy>(
    what: &'static str,
    name: &str,
    all: &[T],
    name_of: fn(T) -> &'static str,
) -> Result<T, UnknownName> {
    let found = all.iter().copied().find(|&one| name_of(one) == name);
    found.ok_or_else(|| UnknownName { what, name: name.to_owned(), known: all.iter().copied().map(name_of).collect() })
}

impl FromStr for Strategy {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        by_name("strategy", name, Strategy::KNOWN, Strategy::name)
    }
}

impl FromStr for Rules {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        by_name("machine", name, &Rules::ALL, Rules::name)
    }
}

/// Nothing at all: the borrow is not counted, and nobody looks for borrowers. The baseline that must fail.
///
/// It is what `CONFIG_MMU_LAZY_TLB_REFCOUNT=n` is without anything in its place: a promise that nobody keeps. Andy
/// Lutomirski showed in November 2021 that on x86 it "works" until one looks at `active_mm`, because the flush of the
/// last mmput has moved the MMU already.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unprotected;

impl<P: Platform> LazyTlb<P> for Unprotected {
    type CpuState = ();
    type MmState = ();
    type Shared = ();

    fn name(&self) -> &'static str {
        "unprotected"
    }

    fn mmgrab_lazy_tlb(&self, _platform: P, _this: &(), _shared: &(), _mm: &MmCore<P>) {}
}

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

    /// No time that it keeps is further ahead of the present, and all that are as far behind are the same to it.
    fn reach(&self) -> usize {
        0
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

    fn reach(&self) -> usize {
        self.linger
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

    fn time_in(&self, mm: &Self::MmState) -> usize {
        mm.until()
    }

    fn reach(&self) -> usize {
        self.deadline.unwrap_or(0)
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
        fn reach(&self) -> usize {
            3
        }
    }
}

/// Does something with whichever strategy it is, and with its part of each state.
macro_rules! each {
    ($any:expr, $($state:ident)?, |$strategy:ident, $part:ident| $body:expr) => {
        each!(@ $any, ($($state)?), $strategy, $part, $body;
            NoLazy no_lazy, Refcount refcount, RefcountDeferred refcount_deferred, RefcountPerCpu refcount_per_cpu,
            Shootdown shootdown, ShootdownBatched shootdown_batched, UsersOnly users_only, LazyFix lazyfix, HazardConvert hazard_convert,
            HazardIpi hazard_ipi, HazardDeadline hazard_deadline, GeneralHazard general_hazard, EpochQs epoch_qs,
            EpochPinned epoch_pinned)
    };
    (@ $any:expr, ($state:ident), $strategy:ident, $part:ident, $body:expr; $($variant:ident $field:ident),*) => {
        match $any {
            $(AnyLazyTlb::$variant($strategy) => {
                let $part = &$state.$field;
                $body
            })*
            _ => unreachable!("the list above has all"),
        }
    };
}

impl<P: AnyPlatform> Accounted<P> for AnyLazyTlb {
    fn needs_worker(&self) -> bool {
        matches!(
            self,
            AnyLazyTlb::RefcountDeferred(_) | AnyLazyTlb::ShootdownBatched(_) | AnyLazyTlb::HazardDeadline(_)
        )
    }

    fn references(&self, cpu: &Self::CpuState, mm: MmPtr<P>, borrows: bool) -> usize {
        each!(self, cpu, |strategy, part| Accounted::<P>::references(strategy, part, mm, borrows))
    }

    fn publishes(&self, cpu: &Self::CpuState) -> Published<P> {
        each!(self, cpu, |strategy, part| Accounted::<P>::publishes(strategy, part))
    }

    fn needs_mask(&self) -> NeedsMask {
        match self {
            AnyLazyTlb::Shootdown(_) | AnyLazyTlb::ShootdownBatched(_) | AnyLazyTlb::LazyFix(_) => {
                NeedsMask::WithoutReferences
            }
            AnyLazyTlb::UsersOnly(_) => NeedsMask::WithoutUsers,
            _ => NeedsMask::Never,
        }
    }

    fn waiting(&self, shared: &Self::Shared) -> usize {
        each!(self, shared, |strategy, part| Accounted::<P>::waiting(strategy, part))
    }

    fn waits_for_slots(&self) -> bool {
        matches!(self, AnyLazyTlb::HazardDeadline(_) | AnyLazyTlb::GeneralHazard(_))
    }

    fn waits_for(&self, cpu: &Self::CpuState, borrows: bool, isolated: bool) -> bool {
        each!(self, cpu, |strategy, part| Accounted::<P>::waits_for(strategy, part, borrows, isolated))
    }

    fn epoch(&self, shared: &Self::Shared) -> usize {
        each!(self, shared, |strategy, part| Accounted::<P>::epoch(strategy, part))
    }

    fn time_on(&self, cpu: &Self::CpuState) -> usize {
        each!(self, cpu, |strategy, part| Accounted::<P>::time_on(strategy, part))
    }

    fn time_in(&self, mm: &Self::MmState) -> usize {
        each!(self, mm, |strategy, part| Accounted::<P>::time_in(strategy, part))
    }

    fn reach(&self) -> usize {
        match self {
            AnyLazyTlb::ShootdownBatched(strategy) => Accounted::<P>::reach(strategy),
            AnyLazyTlb::HazardDeadline(strategy) => Accounted::<P>::reach(strategy),
            AnyLazyTlb::EpochPinned(strategy) => Accounted::<P>::reach(strategy),
            _ => 0,
        }
    }
}
