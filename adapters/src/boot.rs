//! [`AnyLazyTlbAlloc`]: the strategy chosen at boot, the adapters among them.
//!
//! The library's own enum stays without allocation; this one wraps it and adds two. What [`AnyLazyTlb`] says of its cost and of
//! what it can promise holds here too.

use std::fmt;
use std::str::FromStr;

use lazytlb::any::{AnyCpuState, AnyLazyTlb, AnyMmState, AnyPlatform, AnyShared};
use lazytlb::core::mm::{CountRef, Slot};
use lazytlb::core::part::{Part, PartOf};
use lazytlb::core::platform::Context;
use lazytlb::core::{Freeing, Host, LazyTlb, MmCore, MmPtr};

use crate::NativePlatform;
use crate::arc_per_cpu::{ArcPerCpu, LoadedMm, UsersShare};
use crate::crossbeam::{CrossbeamEpoch, Epochs, Participant};

/// What the enum asks of its platform.
pub trait AllocPlatform: AnyPlatform + NativePlatform {}

impl<P: AnyPlatform + NativePlatform> AllocPlatform for P {}

/// One of the library's strategies, or an adapter.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum AnyLazyTlbAlloc {
    /// One of the library's.
    Own(AnyLazyTlb),
    /// Epochs of `crossbeam-epoch`.
    CrossbeamEpoch(CrossbeamEpoch),
    /// An `Arc` for what each CPU has loaded.
    ArcPerCpu(ArcPerCpu),
}

/// The adapters, each as its default configuration has it.
const ADAPTERS: [AnyLazyTlbAlloc; 2] =
    [AnyLazyTlbAlloc::CrossbeamEpoch(CrossbeamEpoch { evict_at_idle: true }), AnyLazyTlbAlloc::ArcPerCpu(ArcPerCpu)];

impl AnyLazyTlbAlloc {
    /// All of them, the library's first, each as its default configuration has it.
    pub fn all() -> impl Iterator<Item = AnyLazyTlbAlloc> {
        AnyLazyTlb::ALL.iter().copied().map(AnyLazyTlbAlloc::Own).chain(ADAPTERS)
    }

    /// The name that [`FromStr`] understands.
    pub const fn name(&self) -> &'static str {
        match self {
            AnyLazyTlbAlloc::Own(strategy) => strategy.name(),
            AnyLazyTlbAlloc::CrossbeamEpoch(_) => "crossbeam-epoch",
            AnyLazyTlbAlloc::ArcPerCpu(_) => "arc-per-cpu",
        }
    }
}

/// A name that is no strategy's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UnknownStrategy;

impl fmt::Display for UnknownStrategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("unknown strategy; there are:")?;
        AnyLazyTlbAlloc::all().try_for_each(|strategy| write!(f, " {}", strategy.name()))
    }
}

impl std::error::Error for UnknownStrategy {}

impl FromStr for AnyLazyTlbAlloc {
    type Err = UnknownStrategy;

    /// A boot parameter.
    fn from_str(name: &str) -> Result<Self, UnknownStrategy> {
        AnyLazyTlbAlloc::all().find(|strategy| strategy.name() == name).ok_or(UnknownStrategy)
    }
}

/// Makes a state of the states of all, and says which part is whose.
macro_rules! states {
    ($($(#[$doc:meta])* $whole:ident, $of:ident, $state:ident: $own:ty, $crossbeam:ty, $arc:ty;)*) => {
        $(
            $(#[$doc])*
            pub struct $whole<P: AllocPlatform> {
                own: $own,
                crossbeam: $crossbeam,
                arc: $arc,
            }

            impl<P: AllocPlatform> Slot for $whole<P> {
                fn new() -> Self {
                    $whole { own: Slot::new(), crossbeam: Slot::new(), arc: Slot::new() }
                }

                fn reinit(&self) {
                    self.own.reinit();
                    Slot::reinit(&self.crossbeam);
                    Slot::reinit(&self.arc);
                }
            }

            impl<P: AllocPlatform> fmt::Debug for $whole<P> {
                fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    f.debug_struct(stringify!($whole)).finish_non_exhaustive()
                }
            }
        )*

        impl<P: AllocPlatform> PartOf<AnyLazyTlbAlloc, P> for AnyLazyTlb {
            $(fn $of(whole: &$whole<P>) -> &Self::$state {
                &whole.own
            })*
        }

        impl<P: AllocPlatform> PartOf<AnyLazyTlbAlloc, P> for CrossbeamEpoch {
            $(fn $of(whole: &$whole<P>) -> &<Self as LazyTlb<P>>::$state {
                &whole.crossbeam
            })*
        }

        impl<P: AllocPlatform> PartOf<AnyLazyTlbAlloc, P> for ArcPerCpu {
            $(fn $of(whole: &$whole<P>) -> &<Self as LazyTlb<P>>::$state {
                &whole.arc
            })*
        }
    };
}

states! {
    /// Every strategy's state for a CPU.
    AllocCpuState, of_cpu, CpuState: AnyCpuState<P>, Participant, LoadedMm<P>;
    /// Every strategy's state in an mm.
    AllocMmState, of_mm, MmState: AnyMmState<P>, (), UsersShare<P>;
    /// Every strategy's state of the machine as a whole.
    AllocShared, of_shared, Shared: AnyShared<P>, Epochs<P>, ();
}

/// Does something with whichever strategy it is, and with its parts of the states.
macro_rules! each {
    ($any:expr, |$strategy:ident $(, $part:ident of $whole:ident)*| $body:expr) => {
        match $any {
            AnyLazyTlbAlloc::Own($strategy) => {
                $(let $part = &$whole.own;)*
                $body
            }
            AnyLazyTlbAlloc::CrossbeamEpoch($strategy) => {
                $(let $part = &$whole.crossbeam;)*
                $body
            }
            AnyLazyTlbAlloc::ArcPerCpu($strategy) => {
                $(let $part = &$whole.arc;)*
                $body
            }
        }
    };
}

impl<P: AllocPlatform> LazyTlb<P> for AnyLazyTlbAlloc {
    type CpuState = AllocCpuState<P>;
    type MmState = AllocMmState<P>;
    type Shared = AllocShared<P>;

    fn name(&self) -> &'static str {
        AnyLazyTlbAlloc::name(self)
    }

    #[inline]
    fn borrows(&self) -> bool {
        each!(self, |strategy| LazyTlb::<P>::borrows(strategy))
    }

    #[inline]
    fn mmgrab_lazy_tlb(&self, platform: P, this: &AllocCpuState<P>, shared: &AllocShared<P>, mm: &MmCore<P>) {
        each!(self, |strategy, cpu of this, machine of shared| strategy.mmgrab_lazy_tlb(platform, cpu, machine, mm));
    }

    #[inline]
    fn activate_mm(&self, host: &impl Host<P, Self>, this: &AllocCpuState<P>, mm: Option<&MmCore<P>>) {
        each!(self, |strategy, cpu of this| strategy.activate_mm(&Part::new(host), cpu, mm));
    }

    #[inline]
    fn leave_lazy_tlb(&self, platform: P, this: &AllocCpuState<P>) {
        each!(self, |strategy, cpu of this| strategy.leave_lazy_tlb(platform, cpu));
    }

    #[inline]
    fn mmdrop_lazy_tlb(&self, platform: P, mm: MmPtr<P>) -> Option<CountRef<P>> {
        each!(self, |strategy| strategy.mmdrop_lazy_tlb(platform, mm))
    }

    #[inline]
    fn mmdrop_lazy_tlb_sched(&self, platform: P, mm: MmPtr<P>) -> Option<CountRef<P>> {
        each!(self, |strategy| strategy.mmdrop_lazy_tlb_sched(platform, mm))
    }

    #[inline]
    fn switch_tail(&self, platform: P, this: &AllocCpuState<P>) -> Option<CountRef<P>> {
        each!(self, |strategy, cpu of this| strategy.switch_tail(platform, cpu))
    }

    fn mm_users_zero(&self, host: &impl Host<P, Self>, mm: &MmCore<P>) {
        each!(self, |strategy| strategy.mm_users_zero(&Part::new(host), mm));
    }

    fn cleanup_lazy_tlbs(&self, host: &impl Host<P, Self>, mm: MmPtr<P>) -> Freeing {
        each!(self, |strategy| strategy.cleanup_lazy_tlbs(&Part::new(host), mm))
    }

    #[inline]
    fn borrow_is_over(&self, host: &impl Host<P, Self>) {
        each!(self, |strategy| strategy.borrow_is_over(&Part::new(host)));
    }

    fn collect(&self, host: &impl Host<P, Self>) {
        each!(self, |strategy| strategy.collect(&Part::new(host)));
    }

    fn evicts_at_idle(&self) -> bool {
        each!(self, |strategy| LazyTlb::<P>::evicts_at_idle(strategy))
    }

    fn spares_isolated(&self) -> bool {
        each!(self, |strategy| LazyTlb::<P>::spares_isolated(strategy))
    }

    fn may_free(&self, context: Context) -> bool {
        each!(self, |strategy| LazyTlb::<P>::may_free(strategy, context))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_boot_parameters() {
        for strategy in AnyLazyTlbAlloc::all() {
            assert_eq!(strategy.name().parse::<AnyLazyTlbAlloc>().unwrap().name(), strategy.name());
        }
        let error = "arc".parse::<AnyLazyTlbAlloc>().unwrap_err().to_string();
        assert!(error.starts_with("unknown strategy; there are: no-lazy refcount "), "{error}");
        assert!(error.ends_with(" crossbeam-epoch arc-per-cpu"), "{error}");
    }
}
