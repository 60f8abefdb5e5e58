//! The strategies that the lab runs, the machines it runs them on, and which of them claims to work where.

use core::fmt;
use core::str::FromStr;

use lazytlb::any::{AnyLazyTlb, AnyPlatform};
use lazytlb_core::lazy_tlb::LazyTlb;
use lazytlb_core::mm::MmCore;
use lazytlb_core::no_lazy::NoLazy;
use lazytlb_core::platform::Platform;
use lazytlb_epoch::{EpochPinned, EpochQs};
use lazytlb_hazard::deadline::Collector;
use lazytlb_hazard::{GeneralHazard, HazardConvert, HazardDeadline, HazardIpi};
use lazytlb_refcount::{Refcount, RefcountDeferred, RefcountPerCpu};
use lazytlb_shootdown::{LazyFix, Shootdown, ShootdownBatched, UsersOnly};

use crate::accounted::Accounted;

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
    /// Does something with it, chosen at boot if it can be: a type for each would have everything compiled once more for each.
    pub fn with<P: AnyPlatform, A: WithStrategy<P>>(self, action: A) -> A::Output {
        match self.at_boot() {
            Some(strategy) => action.call(strategy),
            None => action.call(Unprotected),
        }
    }

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
