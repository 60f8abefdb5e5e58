//! [`AnyLazyTlb`]: the strategy chosen at boot.
//!
//! An enum over all strategies is a strategy itself. It costs a branch on each step and the largest state of all, and
//! it can promise only what every one of them promises: it does not keep `active_mm` alive for looking into
//! ([`KeepsMmAlive`](lazytlb_core::KeepsMmAlive)), so code that wants more does not compile.

use core::fmt;
use core::str::FromStr;

use lazytlb_core::cpumask::{CpuId, CpuMask};
use lazytlb_core::lazy_tlb::{Host, LazyTlb};
use lazytlb_core::mm::{CountRef, MmCore, MmPtr, Slot};
use lazytlb_core::no_lazy::NoLazy;
use lazytlb_core::platform::{Context, Platform};
use lazytlb_hazard::HazardConvert;
use lazytlb_hazard::convert::HazardSlot;
use lazytlb_refcount::Refcount;
use lazytlb_shootdown::{CanShoot, Shootdown};

/// One of the library's strategies.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum AnyLazyTlb {
    /// Kernel threads run on `init_mm`.
    NoLazy(NoLazy),
    /// A counted reference for each borrow.
    Refcount(Refcount),
    /// An eviction round before the mm is freed.
    Shootdown(Shootdown),
    /// A slot that becomes a reference when the mm dies.
    HazardConvert(HazardConvert),
}

impl AnyLazyTlb {
    /// All of them, each as its default configuration has it.
    pub const ALL: [AnyLazyTlb; 4] = [
        AnyLazyTlb::NoLazy(NoLazy),
        AnyLazyTlb::Refcount(Refcount),
        AnyLazyTlb::Shootdown(Shootdown { debug_shoot_lazies: false }),
        AnyLazyTlb::HazardConvert(HazardConvert::new()),
    ];

    /// The name that [`FromStr`] understands.
    pub const fn name(&self) -> &'static str {
        match self {
            AnyLazyTlb::NoLazy(_) => "no-lazy",
            AnyLazyTlb::Refcount(_) => "refcount",
            AnyLazyTlb::Shootdown(_) => "shootdown",
            AnyLazyTlb::HazardConvert(_) => "hazard-convert",
        }
    }
}

/// A name that is no strategy's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UnknownStrategy;

impl fmt::Display for UnknownStrategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("unknown strategy; there are:")?;
        AnyLazyTlb::ALL.iter().try_for_each(|strategy| write!(f, " {}", strategy.name()))
    }
}

impl core::error::Error for UnknownStrategy {}

impl FromStr for AnyLazyTlb {
    type Err = UnknownStrategy;

    /// A boot parameter.
    fn from_str(name: &str) -> Result<Self, UnknownStrategy> {
        AnyLazyTlb::ALL.into_iter().find(|strategy| strategy.name() == name).ok_or(UnknownStrategy)
    }
}

/// Every strategy's state for a CPU.
#[derive(Debug)]
pub struct AnyCpuState<P: Platform> {
    hazard: HazardSlot<P>,
}

impl<P: Platform> AnyCpuState<P> {
    /// From ready parts; `const`, for statics.
    pub const fn from_parts(hazard: HazardSlot<P>) -> Self {
        AnyCpuState { hazard }
    }
}

impl<P: Platform> Slot for AnyCpuState<P> {
    fn new() -> Self {
        AnyCpuState { hazard: Slot::new() }
    }

    fn reinit(&self) {
        self.hazard.reinit();
    }
}

/// Calls a step of the strategy that was chosen.
macro_rules! chosen {
    ($self:ident, $strategy:ident, $state:ident => $call:expr, $this:expr) => {
        match $self {
            AnyLazyTlb::NoLazy($strategy) => {
                let $state = &();
                $call
            }
            AnyLazyTlb::Refcount($strategy) => {
                let $state = &();
                $call
            }
            AnyLazyTlb::Shootdown($strategy) => {
                let $state = &();
                $call
            }
            AnyLazyTlb::HazardConvert($strategy) => {
                let $state = &$this.hazard;
                $call
            }
        }
    };
}

impl<P: CanShoot> LazyTlb<P> for AnyLazyTlb {
    type CpuState = AnyCpuState<P>;
    type MmState = ();

    fn name(&self) -> &'static str {
        AnyLazyTlb::name(self)
    }

    #[inline]
    fn borrows(&self) -> bool {
        !matches!(self, AnyLazyTlb::NoLazy(_))
    }

    #[inline]
    fn mmgrab_lazy_tlb(&self, platform: P, this: &AnyCpuState<P>, mm: &MmCore<P>) {
        chosen!(self, strategy, state => strategy.mmgrab_lazy_tlb(platform, state, mm), this)
    }

    #[inline]
    fn leave_lazy_tlb(&self, platform: P, this: &AnyCpuState<P>) {
        chosen!(self, strategy, state => strategy.leave_lazy_tlb(platform, state), this)
    }

    #[inline]
    fn mmdrop_lazy_tlb(&self, platform: P, mm: MmPtr<P>) -> Option<CountRef<P>> {
        match self {
            AnyLazyTlb::NoLazy(strategy) => strategy.mmdrop_lazy_tlb(platform, mm),
            AnyLazyTlb::Refcount(strategy) => strategy.mmdrop_lazy_tlb(platform, mm),
            AnyLazyTlb::Shootdown(strategy) => strategy.mmdrop_lazy_tlb(platform, mm),
            AnyLazyTlb::HazardConvert(strategy) => strategy.mmdrop_lazy_tlb(platform, mm),
        }
    }

    #[inline]
    fn mmdrop_lazy_tlb_sched(&self, platform: P, mm: MmPtr<P>) -> Option<CountRef<P>> {
        match self {
            AnyLazyTlb::NoLazy(strategy) => strategy.mmdrop_lazy_tlb_sched(platform, mm),
            AnyLazyTlb::Refcount(strategy) => strategy.mmdrop_lazy_tlb_sched(platform, mm),
            AnyLazyTlb::Shootdown(strategy) => strategy.mmdrop_lazy_tlb_sched(platform, mm),
            AnyLazyTlb::HazardConvert(strategy) => strategy.mmdrop_lazy_tlb_sched(platform, mm),
        }
    }

    #[inline]
    fn switch_tail(&self, platform: P, this: &AnyCpuState<P>) -> Option<CountRef<P>> {
        chosen!(self, strategy, state => strategy.switch_tail(platform, state), this)
    }

    fn mm_users_zero(&self, host: &impl Host<P, Self>, mm: &MmCore<P>) {
        match self {
            AnyLazyTlb::NoLazy(strategy) => strategy.mm_users_zero(&Part(host), mm),
            AnyLazyTlb::Refcount(strategy) => strategy.mm_users_zero(&Part(host), mm),
            AnyLazyTlb::Shootdown(strategy) => strategy.mm_users_zero(&Part(host), mm),
            AnyLazyTlb::HazardConvert(strategy) => strategy.mm_users_zero(&Part(host), mm),
        }
    }

    fn cleanup_lazy_tlbs(&self, host: &impl Host<P, Self>, mm: &MmCore<P>) {
        match self {
            AnyLazyTlb::NoLazy(strategy) => strategy.cleanup_lazy_tlbs(&Part(host), mm),
            AnyLazyTlb::Refcount(strategy) => strategy.cleanup_lazy_tlbs(&Part(host), mm),
            AnyLazyTlb::Shootdown(strategy) => strategy.cleanup_lazy_tlbs(&Part(host), mm),
            AnyLazyTlb::HazardConvert(strategy) => strategy.cleanup_lazy_tlbs(&Part(host), mm),
        }
    }

    fn may_free(&self, context: Context) -> bool {
        match self {
            AnyLazyTlb::NoLazy(strategy) => LazyTlb::<P>::may_free(strategy, context),
            AnyLazyTlb::Refcount(strategy) => LazyTlb::<P>::may_free(strategy, context),
            AnyLazyTlb::Shootdown(strategy) => LazyTlb::<P>::may_free(strategy, context),
            AnyLazyTlb::HazardConvert(strategy) => LazyTlb::<P>::may_free(strategy, context),
        }
    }
}

/// The host as one of the strategies sees it: with its own part of each state.
struct Part<'a, H>(&'a H);

/// Where a strategy's state for a CPU is.
trait PartOf<P: Platform>: LazyTlb<P, MmState = ()> {
    fn part(any: &AnyCpuState<P>) -> &Self::CpuState;
}

impl<P: CanShoot> PartOf<P> for HazardConvert {
    fn part(any: &AnyCpuState<P>) -> &HazardSlot<P> {
        &any.hazard
    }
}

macro_rules! no_state {
    ($($strategy:ty)*) => {$(
        impl<P: CanShoot> PartOf<P> for $strategy {
            fn part(_: &AnyCpuState<P>) -> &() {
                &()
            }
        }
    )*};
}

no_state!(NoLazy Refcount Shootdown);

impl<P: CanShoot, S: PartOf<P>, H: Host<P, AnyLazyTlb>> Host<P, S> for Part<'_, H> {
    fn platform(&self) -> P {
        self.0.platform()
    }

    fn cpu_state(&self, cpu: CpuId) -> &S::CpuState {
        S::part(self.0.cpu_state(cpu))
    }

    fn mm_state<'a>(&self, mm: &'a MmCore<P>) -> &'a () {
        self.0.mm_state(mm)
    }

    fn mmdrop(&self, reference: CountRef<P>) {
        self.0.mmdrop(reference);
    }

    fn evict_lazies(&self, mm: &MmCore<P>, targets: &CpuMask<P>) {
        self.0.evict_lazies(mm, targets);
    }

    fn check_lazies_gone(&self, mm: &MmCore<P>) {
        self.0.check_lazies_gone(mm);
    }
}

#[cfg(test)]
mod tests {
    use std::string::ToString;

    use super::*;

    #[test]
    fn names_are_boot_parameters() {
        for strategy in AnyLazyTlb::ALL {
            assert_eq!(strategy.name().parse::<AnyLazyTlb>().unwrap().name(), strategy.name());
        }
        let error = "refcounts".parse::<AnyLazyTlb>().unwrap_err();
        assert_eq!(error.to_string(), "unknown strategy; there are: no-lazy refcount shootdown hazard-convert");
    }
}
