//! [`AnyLazyTlb`]: the strategy chosen at boot.
//!
//! An enum over all strategies is a strategy itself. It costs a branch on each step and the state of all of them, and it
//! can promise only what every one of them promises: it does not keep `active_mm` alive for looking into
//! ([`KeepsMmAlive`](lazytlb_core::KeepsMmAlive)), so code that wants more does not compile.

use core::fmt;
use core::str::FromStr;

use lazytlb_core::lazy_tlb::{Freeing, Host, LazyTlb};
use lazytlb_core::mm::{CountRef, MmCore, MmPtr, Slot};
use lazytlb_core::no_lazy::NoLazy;
use lazytlb_core::part::{Part, PartOf};
use lazytlb_core::platform::{Clock, Context};
use lazytlb_epoch::{EpochPinned, EpochQs};
use lazytlb_hazard::{GeneralHazard, HazardConvert, HazardDeadline, HazardIpi};
use lazytlb_refcount::{Refcount, RefcountDeferred, RefcountPerCpu};
use lazytlb_shootdown::{CanShoot, LazyFix, Shootdown, ShootdownBatched, UsersOnly};

/// What the enum asks of its platform: what any of the strategies asks.
pub trait AnyPlatform: CanShoot + Clock {}

impl<P: CanShoot + Clock> AnyPlatform for P {}

/// Makes the enum and its states of the list of strategies: the one place that has all of them.
macro_rules! strategies {
    ($($(#[$doc:meta])* $variant:ident: $name:literal, $field:ident, $default:expr;)*) => {
        /// One of the library's strategies.
        #[derive(Clone, Copy, Debug)]
        #[non_exhaustive]
        pub enum AnyLazyTlb {
            $($(#[$doc])* $variant($variant),)*
        }

        impl AnyLazyTlb {
            /// All of them, each as its default configuration has it.
            pub const ALL: &'static [AnyLazyTlb] = &[$(AnyLazyTlb::$variant($default)),*];

            /// The name that [`FromStr`] understands.
            pub const fn name(&self) -> &'static str {
                match self {
                    $(AnyLazyTlb::$variant(_) => $name,)*
                }
            }
        }

        /// Every strategy's state for a CPU. The fields are public so that a static can be made of ready parts.
        #[expect(missing_docs, reason = "each field is what its strategy says it is")]
        pub struct AnyCpuState<P: AnyPlatform> {
            $(pub $field: <$variant as LazyTlb<P>>::CpuState,)*
        }

        impl<P: AnyPlatform> Slot for AnyCpuState<P> {
            fn new() -> Self {
                AnyCpuState { $($field: Slot::new(),)* }
            }

            fn reinit(&self) {
                $(self.$field.reinit();)*
            }
        }

        /// Every strategy's state in an mm. The fields are public so that a static can be made of ready parts.
        #[expect(missing_docs, reason = "each field is what its strategy says it is")]
        pub struct AnyMmState<P: AnyPlatform> {
            $(pub $field: <$variant as LazyTlb<P>>::MmState,)*
        }

        impl<P: AnyPlatform> Slot for AnyMmState<P> {
            fn new() -> Self {
                AnyMmState { $($field: Slot::new(),)* }
            }

            fn reinit(&self) {
                $(self.$field.reinit();)*
            }
        }

        /// Every strategy's state of the machine as a whole. The fields are public so that a static can be made of ready parts.
        #[expect(missing_docs, reason = "each field is what its strategy says it is")]
        pub struct AnyShared<P: AnyPlatform> {
            $(pub $field: <$variant as LazyTlb<P>>::Shared,)*
        }

        impl<P: AnyPlatform> Slot for AnyShared<P> {
            fn new() -> Self {
                AnyShared { $($field: Slot::new(),)* }
            }

            fn reinit(&self) {
                $(self.$field.reinit();)*
            }
        }

        $(impl<P: AnyPlatform> PartOf<AnyLazyTlb, P> for $variant {
            fn of_cpu(any: &AnyCpuState<P>) -> &Self::CpuState {
                &any.$field
            }

            fn of_mm(any: &AnyMmState<P>) -> &Self::MmState {
                &any.$field
            }

            fn of_shared(any: &AnyShared<P>) -> &Self::Shared {
                &any.$field
            }
        })*

        impl<P: AnyPlatform> LazyTlb<P> for AnyLazyTlb {
            type CpuState = AnyCpuState<P>;
            type MmState = AnyMmState<P>;
            type Shared = AnyShared<P>;

            fn name(&self) -> &'static str {
                AnyLazyTlb::name(self)
            }

            #[inline]
            fn borrows(&self) -> bool {
                match self {
                    $(AnyLazyTlb::$variant(strategy) => LazyTlb::<P>::borrows(strategy),)*
                }
            }

            #[inline]
            fn mmgrab_lazy_tlb(&self, platform: P, this: &AnyCpuState<P>, shared: &AnyShared<P>, mm: &MmCore<P>) {
                match self {
                    $(AnyLazyTlb::$variant(strategy) => strategy.mmgrab_lazy_tlb(platform, &this.$field, &shared.$field, mm),)*
                }
            }

            #[inline]
            fn activate_mm(&self, host: &impl Host<P, Self>, this: &AnyCpuState<P>, mm: Option<&MmCore<P>>) {
                match self {
                    $(AnyLazyTlb::$variant(strategy) => strategy.activate_mm(&Part::new(host), &this.$field, mm),)*
                }
            }

            #[inline]
            fn leave_lazy_tlb(&self, platform: P, this: &AnyCpuState<P>) {
                match self {
                    $(AnyLazyTlb::$variant(strategy) => strategy.leave_lazy_tlb(platform, &this.$field),)*
                }
            }

            #[inline]
            fn mmdrop_lazy_tlb(&self, platform: P, mm: MmPtr<P>) -> Option<CountRef<P>> {
                match self {
                    $(AnyLazyTlb::$variant(strategy) => strategy.mmdrop_lazy_tlb(platform, mm),)*
                }
            }

            #[inline]
            fn mmdrop_lazy_tlb_sched(&self, platform: P, mm: MmPtr<P>) -> Option<CountRef<P>> {
                match self {
                    $(AnyLazyTlb::$variant(strategy) => strategy.mmdrop_lazy_tlb_sched(platform, mm),)*
                }
            }

            #[inline]
            fn switch_tail(&self, platform: P, this: &AnyCpuState<P>) -> Option<CountRef<P>> {
                match self {
                    $(AnyLazyTlb::$variant(strategy) => strategy.switch_tail(platform, &this.$field),)*
                }
            }

            fn mm_users_zero(&self, host: &impl Host<P, Self>, mm: &MmCore<P>) {
                match self {
                    $(AnyLazyTlb::$variant(strategy) => strategy.mm_users_zero(&Part::new(host), mm),)*
                }
            }

            fn cleanup_lazy_tlbs(&self, host: &impl Host<P, Self>, mm: MmPtr<P>) -> Freeing {
                match self {
                    $(AnyLazyTlb::$variant(strategy) => strategy.cleanup_lazy_tlbs(&Part::new(host), mm),)*
                }
            }

            #[inline]
            fn borrow_is_over(&self, host: &impl Host<P, Self>) {
                match self {
                    $(AnyLazyTlb::$variant(strategy) => strategy.borrow_is_over(&Part::new(host)),)*
                }
            }

            fn collect(&self, host: &impl Host<P, Self>) {
                match self {
                    $(AnyLazyTlb::$variant(strategy) => strategy.collect(&Part::new(host)),)*
                }
            }

            fn evicts_at_idle(&self) -> bool {
                match self {
                    $(AnyLazyTlb::$variant(strategy) => LazyTlb::<P>::evicts_at_idle(strategy),)*
                }
            }

            fn spares_isolated(&self) -> bool {
                match self {
                    $(AnyLazyTlb::$variant(strategy) => LazyTlb::<P>::spares_isolated(strategy),)*
                }
            }

            fn may_free(&self, context: Context) -> bool {
                match self {
                    $(AnyLazyTlb::$variant(strategy) => LazyTlb::<P>::may_free(strategy, context),)*
                }
            }
        }
    };
}

strategies! {
    /// Kernel threads run on `init_mm`.
    NoLazy: "no-lazy", no_lazy, NoLazy;
    /// A counted reference for each borrow.
    Refcount: "refcount", refcount, Refcount;
    /// A counted reference; where the last one may not be dropped a worker frees.
    RefcountDeferred: "refcount-deferred", refcount_deferred, RefcountDeferred;
    /// A counted reference for what each CPU has loaded.
    RefcountPerCpu: "refcount-per-cpu", refcount_per_cpu, RefcountPerCpu::new();
    /// An eviction round before the mm is freed.
    Shootdown: "shootdown", shootdown, Shootdown { debug_shoot_lazies: false };
    /// An eviction round before many mms are freed.
    ShootdownBatched: "shootdown-batched", shootdown_batched, ShootdownBatched::new();
    /// The flush of the last mmput ends all borrows.
    UsersOnly: "users-only", users_only, UsersOnly;
    /// An eviction round, one CPU after the other, by the hardware's root register.
    LazyFix: "lazyfix", lazyfix, LazyFix;
    /// A slot that becomes a reference when the mm dies.
    HazardConvert: "hazard-convert", hazard_convert, HazardConvert::new();
    /// A slot whose owner is evicted before the mm is freed.
    HazardIpi: "hazard-ipi", hazard_ipi, HazardIpi::new();
    /// A slot that is waited for, for a while.
    HazardDeadline: "hazard-deadline", hazard_deadline, HazardDeadline::new();
    /// A general hazard pointer.
    GeneralHazard: "general-hazard", general_hazard, GeneralHazard::new();
    /// Grace periods over the ends of borrows.
    EpochQs: "epoch-qs", epoch_qs, EpochQs { evict_at_idle: true };
    /// Epochs, pinned by borrows.
    EpochPinned: "epoch-pinned", epoch_pinned, EpochPinned { evict_at_idle: true };
}

impl<P: AnyPlatform> fmt::Debug for AnyCpuState<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AnyCpuState { .. }")
    }
}

impl<P: AnyPlatform> fmt::Debug for AnyShared<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AnyShared { .. }")
    }
}

impl<P: AnyPlatform> fmt::Debug for AnyMmState<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AnyMmState { .. }")
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
        AnyLazyTlb::ALL.iter().copied().find(|strategy| strategy.name() == name).ok_or(UnknownStrategy)
    }
}

#[cfg(test)]
mod tests {
    use std::string::ToString;

    use super::*;

    #[test]
    fn names_are_boot_parameters() {
        for &strategy in AnyLazyTlb::ALL {
            assert_eq!(strategy.name().parse::<AnyLazyTlb>().unwrap().name(), strategy.name());
        }
        let error = "refcounts".parse::<AnyLazyTlb>().unwrap_err();
        assert!(error.to_string().starts_with("unknown strategy; there are: no-lazy refcount refcount-deferred"));
    }
}
