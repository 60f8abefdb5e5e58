//! [`ShootdownBatched`]: one round of interrupts for many dying mms.

use core::fmt;

use lazytlb_core::cpumask::Among;
use lazytlb_core::lazy_tlb::{Freeing, Host, KeepsMmAlive, LazyTlb};
use lazytlb_core::memory::Ordering::Relaxed;
use lazytlb_core::mm::{MmCore, MmPtr, Slot};
use lazytlb_core::platform::{Clock, Context, IpisInterrupt, MaskCoversLazy, Platform};
use lazytlb_core::waiting::{Link, List, Waiting};

/// [`Shootdown`](crate::Shootdown), with the mms that die kept waiting until there are enough of them for a round.
///
/// A CPU that is interrupted leaves what it borrows if that has no user any more, so one interrupt does for all that
/// wait. Those of a mask of any of them are interrupted.
///
/// | path | cost |
/// | --- | --- |
/// | switches | those of [`Shootdown`](crate::Shootdown) |
/// | freeing | three RMWs; for every so many mms, an interrupt to each CPU of any of their masks, and a wait for all |
///
/// *Needs:* what [`Shootdown`](crate::Shootdown) needs; a clock and a worker for those that are left over ([`Clock`]).
///
/// *Cannot:* free at once. Up to `batch` mms wait, and those whose last reference is dropped where nobody may wait for other
/// CPUs; none for longer than `linger` and the worker's delay.
///
/// The last reference may be dropped anywhere but in an NMI.
///
/// Source: "batch several dying mms per IPI" is a wish of Piggin's log of Linux commit 2655421ae69f.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ShootdownBatched {
    /// How many mms make a round.
    pub batch: usize,
    /// How long an mm waits for others at most, in ticks of the platform's clock. What is longer than half the clock's range
    /// is taken for half its range.
    pub linger: usize,
}

impl ShootdownBatched {
    /// Sixteen at a time, ten ticks at most.
    pub const fn new() -> Self {
        ShootdownBatched { batch: 16, linger: 10 }
    }
}

impl Default for ShootdownBatched {
    fn default() -> Self {
        ShootdownBatched::new()
    }
}

/// What waits, and what the round is for.
pub struct Batch<P: Platform> {
    waiting: Waiting<P>,
    /// Empty but in a round.
    shot: List<P>,
}

impl<P: Platform> Batch<P> {
    /// Nothing waits, from ready parts, all empty; `const`, for statics.
    pub const fn from_parts(waiting: Waiting<P>, shot: List<P>) -> Self {
        Batch { waiting, shot }
    }

    /// What waits, for those who watch the machine from outside.
    pub fn waiting(&self) -> &Waiting<P> {
        &self.waiting
    }
}

impl<P: Platform> Slot for Batch<P> {
    fn new() -> Self {
        Batch { waiting: Slot::new(), shot: Slot::new() }
    }

    fn reinit(&self) {
        self.waiting.reinit();
        self.shot.reinit();
    }
}

impl<P: Platform> fmt::Debug for Batch<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch").field("waiting", &self.waiting).finish_non_exhaustive()
    }
}

impl<P: Clock + IpisInterrupt + MaskCoversLazy> LazyTlb<P> for ShootdownBatched {
    type CpuState = ();
    type MmState = Link<P>;
    type Shared = Batch<P>;

    fn name(&self) -> &'static str {
        "shootdown-batched"
    }

    #[inline]
    fn mmgrab_lazy_tlb(&self, _platform: P, _this: &(), _shared: &Batch<P>, _mm: &MmCore<P>) {}

    fn cleanup_lazy_tlbs(&self, host: &impl Host<P, Self>, mm: MmPtr<P>) -> Freeing {
        let (platform, waiting) = (host.platform(), &host.shared().waiting);
        // SAFETY: this is the mm that is to be freed.
        unsafe { waiting.push(host, mm) };
        if waiting.len() >= self.batch && platform.context().may_wait_for_cpus() {
            self.collect(host);
        } else {
            platform.queue_work_at(platform.jiffies_in(self.linger));
        }
        Freeing::Later
    }

    fn collect(&self, host: &impl Host<P, Self>) {
        let Batch { waiting, shot } = host.shared();
        waiting.with_turn(host, |turn| {
            for mm in turn.take(host) {
                // SAFETY: taken here, and freed from this list only.
                unsafe { shot.push(host, mm) };
            }
            if shot.is_empty() {
                return;
            }
            // SAFETY: only who has the turn takes from this list.
            let is_target = |cpu| unsafe { shot.any(host, |mm| mm.cpumask().test_cpu(cpu, Relaxed)) };
            // SAFETY: this strategy keeps active_mm alive.
            unsafe { host.evict_unused(Among::All, is_target) };
            for mm in shot.take(host) {
                // SAFETY: its count is zero, and every CPU of its mask has left it.
                unsafe { turn.free(host, mm) };
            }
        });
    }

    /// Dropping the last reference only puts the mm on a list. A worker cannot be asked for from an NMI.
    fn may_free(&self, context: Context) -> bool {
        !context.in_nmi
    }
}

// SAFETY: the mm is freed only after every CPU that may have it as active_mm has answered a round, and a CPU with
// interrupts off does not answer.
unsafe impl<P: Clock + IpisInterrupt + MaskCoversLazy> KeepsMmAlive<P> for ShootdownBatched {}
