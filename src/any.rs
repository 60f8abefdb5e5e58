//! [`AnyLazyTlb`]: the strategy chosen at boot.
//!
//! An enum over all strategies is a strategy itself. It costs a branch on each step and the state of all of them, and it
//! can promise only what every one of them promises: it does not keep `active_mm` alive for looking into
//! ([`KeepsMmAlive`](lazytlb_core::KeepsMmAlive)), so code that wants more does not compile.

use core::fmt;
use core::str::FromStr;

use lazytlb_core::cpumask::{Among, CpuId};
use lazytlb_core::lazy_tlb::{Host, LazyTlb};
use lazytlb_core::mm::{CountRef, MmCore, MmPtr, Slot};
use lazytlb_core::no_lazy::NoLazy;
use lazytlb_core::platform::Context;
use lazytlb_hazard::{HazardConvert, HazardIpi};
use lazytlb_refcount::Refcount;
use lazytlb_shootdown::{CanShoot, LazyFix, Shootdown, UsersOnly};

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
        pub struct AnyCpuState<P: CanShoot> {
            $(pub $field: <$variant as LazyTlb<P>>::CpuState,)*
        }

        impl<P: CanShoot> Slot for AnyCpuState<P> {
            fn new() -> Self {
                AnyCpuState { $($field: Slot::new(),)* }
            }

            fn reinit(&self) {
                $(self.$field.reinit();)*
            }
        }

        /// Every strategy's state in an mm. The fields are public so that a static can be made of ready parts.
        #[expect(missing_docs, reason = "each field is what its strategy says it is")]
        pub struct AnyMmState<P: CanShoot> {
            $(pub $field: <$variant as LazyTlb<P>>::MmState,)*
        }

        impl<P: CanShoot> Slot for AnyMmState<P> {
            fn new() -> Self {
                AnyMmState { $($field: Slot::new(),)* }
            }

            fn reinit(&self) {
                $(self.$field.reinit();)*
            }
        }

        $(impl<P: CanShoot> PartOf<P> for $variant {
            fn of_cpu(any: &AnyCpuState<P>) -> &Self::CpuState {
                &any.$field
            }

            fn of_mm(any: &AnyMmState<P>) -> &Self::MmState {
                &any.$field
            }
        })*

        impl<P: CanShoot> LazyTlb<P> for AnyLazyTlb {
            type CpuState = AnyCpuState<P>;
            type MmState = AnyMmState<P>;

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
            fn mmgrab_lazy_tlb(&self, platform: P, this: &AnyCpuState<P>, mm: &MmCore<P>) {
                match self {
                    $(AnyLazyTlb::$variant(strategy) => strategy.mmgrab_lazy_tlb(platform, &this.$field, mm),)*
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
                    $(AnyLazyTlb::$variant(strategy) => strategy.mm_users_zero(&Part(host), mm),)*
                }
            }

            fn cleanup_lazy_tlbs(&self, host: &impl Host<P, Self>, mm: &MmCore<P>) {
                match self {
                    $(AnyLazyTlb::$variant(strategy) => strategy.cleanup_lazy_tlbs(&Part(host), mm),)*
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
    /// An eviction round before the mm is freed.
    Shootdown: "shootdown", shootdown, Shootdown { debug_shoot_lazies: false };
    /// The flush of the last mmput ends all borrows.
    UsersOnly: "users-only", users_only, UsersOnly;
    /// An eviction round, one CPU after the other, by the hardware's root register.
    LazyFix: "lazyfix", lazyfix, LazyFix;
    /// A slot that becomes a reference when the mm dies.
    HazardConvert: "hazard-convert", hazard_convert, HazardConvert::new();
    /// A slot whose owner is evicted before the mm is freed.
    HazardIpi: "hazard-ipi", hazard_ipi, HazardIpi;
}

impl<P: CanShoot> fmt::Debug for AnyCpuState<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AnyCpuState { .. }")
    }
}

impl<P: CanShoot> fmt::Debug for AnyMmState<P> {
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

/// Where a strategy's states are among those of all.
trait PartOf<P: CanShoot>: LazyTlb<P> {
    fn of_cpu(any: &AnyCpuState<P>) -> &Self::CpuState;
    fn of_mm(any: &AnyMmState<P>) -> &Self::MmState;
}

/// The host as one of the strategies sees it: with its own part of each state.
struct Part<'a, H>(&'a H);

impl<P: CanShoot, S: PartOf<P>, H: Host<P, AnyLazyTlb>> Host<P, S> for Part<'_, H> {
    fn platform(&self) -> P {
        self.0.platform()
    }

    fn cpu_state(&self, cpu: CpuId) -> &S::CpuState {
        S::of_cpu(self.0.cpu_state(cpu))
    }

    fn mm_state<'a>(&self, mm: &'a MmCore<P>) -> &'a S::MmState {
        S::of_mm(self.0.mm_state(mm))
    }

    fn mmdrop(&self, reference: CountRef<P>) {
        self.0.mmdrop(reference);
    }

    fn evict_lazies(&self, mm: &MmCore<P>, among: Among<'_, P>, is_target: impl Fn(CpuId) -> bool) {
        self.0.evict_lazies(mm, among, is_target);
    }

    fn evict_by_root(&self, mm: &MmCore<P>, among: Among<'_, P>, is_target: impl Fn(CpuId) -> bool) {
        self.0.evict_by_root(mm, among, is_target);
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
        for &strategy in AnyLazyTlb::ALL {
            assert_eq!(strategy.name().parse::<AnyLazyTlb>().unwrap().name(), strategy.name());
        }
        let error = "refcounts".parse::<AnyLazyTlb>().unwrap_err();
        assert!(error.to_string().starts_with("unknown strategy; there are: no-lazy refcount shootdown"));
    }
}
