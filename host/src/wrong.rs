//! Strategies that are wrong, each of which must be caught.

use lazytlb::core::mm::CountRef;
use lazytlb::core::{MmCore, MmPtr};
use lazytlb::{LazyTlb, Platform, Refcount};

macro_rules! wrong {
    ($(#[$doc:meta])* $name:ident, $text:literal, { $($step:item)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name;

        impl<P: Platform> LazyTlb<P> for $name {
            type CpuState = ();
            type MmState = ();
            type Shared = ();

            fn name(&self) -> &'static str {
                $text
            }

            $($step)*
        }
    };
}

wrong! {
    /// Nobody counts borrows, and nobody looks for borrowers.
    Unprotected, "unprotected", {
        fn mmgrab_lazy_tlb(&self, _: P, (): &(), (): &(), _: &MmCore<P>) {}
    }
}

wrong! {
    /// Counts, and never gives back.
    Leaks, "leaks", {
        fn mmgrab_lazy_tlb(&self, platform: P, (): &(), (): &(), mm: &MmCore<P>) {
            Refcount.mmgrab_lazy_tlb(platform, &(), &(), mm);
        }
    }
}

wrong! {
    /// Gives back what nobody has counted.
    DropsUncounted, "drops-uncounted", {
        fn mmgrab_lazy_tlb(&self, _: P, (): &(), (): &(), _: &MmCore<P>) {}

        fn mmdrop_lazy_tlb(&self, platform: P, mm: MmPtr<P>) -> Option<CountRef<P>> {
            Refcount.mmdrop_lazy_tlb(platform, mm)
        }
    }
}
