//! [`ArcPerCpu`]: an `Arc` in a slot of each CPU stands for the mm that it has loaded.

use std::fmt;
use std::ptr::null_mut;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering::*};

use arc_swap::ArcSwapOption;
use lazytlb::core::mm::{CountRef, Slot};
use lazytlb::core::platform::Warning;
use lazytlb::core::{Host, KeepsMmAlive, LazyTlb, MmCore, MmPtr};

use crate::NativePlatform;

/// One reference to an mm, shared by all CPUs that have it loaded and by its users.
struct Lease<P: NativePlatform> {
    /// Null until a CPU loads the mm; from then on the lease owns a reference.
    mm: AtomicPtr<MmCore<P>>,
}

impl<P: NativePlatform> Lease<P> {
    fn new() -> Option<Arc<Self>> {
        Some(Arc::new(Lease { mm: AtomicPtr::new(null_mut()) }))
    }

    /// The mm is loaded for the first time, or again. The caller owns a user of it.
    fn take(&self, mm: &MmCore<P>) {
        let is_first = self.mm.load(Relaxed).is_null()
            && self.mm.compare_exchange(null_mut(), MmPtr::from(mm).as_ptr(), Relaxed, Relaxed).is_ok();
        if is_first {
            // SAFETY: the lease owns it, and gives it to whoever drops the lease last.
            unsafe { mm.count_add(1) };
        }
    }

    /// Drops a share; the last one is the reference.
    fn drop_share(lease: Arc<Self>) -> Option<CountRef<P>> {
        let mm = MmPtr::new(Arc::into_inner(lease)?.mm.into_inner())?;
        // SAFETY: the lease owned it, and only the last share comes here.
        Some(unsafe { CountRef::new(mm) })
    }
}

/// In each mm: its users' share.
pub struct UsersShare<P: NativePlatform> {
    lease: ArcSwapOption<Lease<P>>,
}

impl<P: NativePlatform> Slot for UsersShare<P> {
    fn new() -> Self {
        UsersShare { lease: ArcSwapOption::new(Lease::<P>::new()) }
    }

    fn reinit(&self) {
        self.lease.store(Lease::<P>::new());
    }
}

impl<P: NativePlatform> fmt::Debug for UsersShare<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UsersShare { .. }")
    }
}

/// A CPU's two slots.
pub struct LoadedMm<P: NativePlatform> {
    /// The share in the mm that the CPU has loaded, or is about to; none for `init_mm`.
    loaded: ArcSwapOption<Lease<P>>,
    /// The one before, until the tail of the switch.
    left: ArcSwapOption<Lease<P>>,
}

impl<P: NativePlatform> LoadedMm<P> {
    fn is_on(&self, mm: *mut MmCore<P>) -> bool {
        let of = |lease: &Arc<Lease<P>>| lease.mm.load(Relaxed);
        self.loaded.load().as_ref().map_or(null_mut(), of) == mm
    }
}

impl<P: NativePlatform> Slot for LoadedMm<P> {
    fn new() -> Self {
        LoadedMm { loaded: ArcSwapOption::empty(), left: ArcSwapOption::empty() }
    }

    fn reinit(&self) {
        self.loaded.store(None);
        self.left.store(None);
    }
}

impl<P: NativePlatform> fmt::Debug for LoadedMm<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LoadedMm { .. }")
    }
}

/// What a CPU has loaded it owns an `Arc` of, in an `arc-swap` slot.
///
/// All shares together own one reference to the mm, which whoever drops the last one drops.
///
/// | path | cost |
/// | --- | --- |
/// | user to kernel thread | nothing |
/// | kernel thread to kernel thread | a guarded load of a slot: two RMWs of lines of the CPU's own |
/// | kernel thread to the same user | two such loads, a full barrier for membarrier |
/// | another user | one RMW on the next mm's `Arc` and one on the last one's, and a dozen on lines of the CPU's own |
/// | a new mm | an allocation |
///
/// *Needs:* native memory; std, because `arc-swap` has thread-local storage: the CPUs are threads.
///
/// *Cannot:* what `RefcountPerCpu` cannot.
///
/// *Orderings:* `Arc`'s and `arc-swap`'s own. Whoever gets the reference out of the last share has what all others did before
/// they dropped theirs. As in `RefcountPerCpu` the share in the former mm is dropped in the tail, after the next root was
/// loaded.
///
/// Source: the protocol is that of Asterinas' `VmSpace::activate`, as `RefcountPerCpu` says, which is the same scheme without
/// allocation, explored by the lab.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct ArcPerCpu;

impl<P: NativePlatform> LazyTlb<P> for ArcPerCpu {
    type CpuState = LoadedMm<P>;
    type MmState = UsersShare<P>;
    type Shared = ();

    fn name(&self) -> &'static str {
        "arc-per-cpu"
    }

    #[inline]
    fn spares_isolated(&self) -> bool {
        true
    }

    /// The CPU owns a share since it loaded `mm`.
    #[inline]
    fn mmgrab_lazy_tlb(&self, platform: P, this: &LoadedMm<P>, _shared: &(), mm: &MmCore<P>) {
        if P::DEBUG_VM && !this.is_on(MmPtr::from(mm).as_ptr()) {
            platform.warn(Warning::SlotBusy);
        }
    }

    fn activate_mm(&self, host: &impl Host<P, Self>, this: &LoadedMm<P>, mm: Option<&MmCore<P>>) {
        if this.is_on(mm.map_or(null_mut(), |mm| MmPtr::from(mm).as_ptr())) {
            return;
        }
        let next = mm.map(|mm| {
            // The caller owns a user, and the users' share goes when the last one does.
            let lease = host.mm_state(mm).lease.load_full().expect("the mm has a user, and the users their share");
            lease.take(mm);
            lease
        });
        if let Some(last) = this.loaded.swap(next) {
            let older = this.left.swap(Some(last));
            if P::DEBUG_VM && older.is_some() {
                host.platform().warn(Warning::SlotBusy);
            }
        }
    }

    #[inline]
    fn switch_tail(&self, _platform: P, this: &LoadedMm<P>) -> Option<CountRef<P>> {
        if this.left.load().is_none() {
            return None;
        }
        Lease::drop_share(this.left.swap(None)?)
    }

    fn mm_users_zero(&self, host: &impl Host<P, Self>, mm: &MmCore<P>) {
        let share = host.mm_state(mm).lease.swap(None);
        if let Some(reference) = share.and_then(Lease::drop_share) {
            host.mmdrop(reference);
        }
    }
}

// SAFETY: a CPU takes a share while it still owns a user of the mm, and drops it in a tail, which comes after active_mm and the
// MMU have left. While there is a share there is a reference.
unsafe impl<P: NativePlatform> KeepsMmAlive<P> for ArcPerCpu {}
