//! MMU notifiers on native memory, one task: what a pair, a subscription and a reader cost by themselves.

use core::fmt;
use core::hint::black_box;
use core::marker::PhantomData;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering::*};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use lazytlb::mmu_notifier::{
    Chain, Contract, Epochs, Event, Hazards, Interrupted, IntervalNode, Invalidated, Invalidating, Invalidation,
    Mirror, MmapWrite, MmuIntervalNotifier, MmuNotifier, Node, NotifierKernel, NotifierMm, PollingLock, Range,
    RangeGuard, Srcu, Walks, WouldBlock,
};
use lazytlb_core::Memory;
use lazytlb_core::memory::At;
use lazytlb_core::native::{Local, Native};

/// A scheme of walks, for eight CPUs.
pub trait Scheme: Copy + Send + Sync + 'static {
    /// What rows of it are called.
    const NAME: &'static str;
    /// Whether the kernel has MMU notifiers.
    const CONFIG_MMU_NOTIFIER: bool = true;
    /// It.
    type Walks: Walks<Bare<Self>> + 'static;
    /// That of all chains.
    fn walks() -> &'static Self::Walks;
}

macro_rules! scheme {
    ($(#[$doc:meta])* $name:ident, $walks:ident, $text:literal $(, $config:expr)?) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name;

        impl Scheme for $name {
            const NAME: &'static str = $text;
            $(const CONFIG_MMU_NOTIFIER: bool = $config;)?
            type Walks = $walks<Bare<$name>, 8>;
            fn walks() -> &'static Self::Walks {
                static WALKS: LazyLock<$walks<Bare<$name>, 8>> = LazyLock::new(Default::default);
                &WALKS
            }
        }
    };
}

scheme!(
    /// By [`Hazards`].
    ByHazards, Hazards, "hazards"
);
scheme!(
    /// By [`Epochs`].
    ByEpochs, Epochs, "epochs"
);
scheme!(
    /// By [`Srcu`].
    BySrcu, Srcu, "srcu"
);
scheme!(
    /// A kernel without MMU notifiers.
    CompiledOut, Hazards, "compiled out", false
);

/// A kernel of one task.
#[derive(Debug)]
pub struct Bare<S>(PhantomData<S>);

impl<S> Clone for Bare<S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S> Copy for Bare<S> {}

impl<S: Scheme> Memory for Bare<S> {
    type AtomicUsize = AtomicUsize;
    type AtomicPtr<T> = AtomicPtr<T>;
    type LocalUsize = Local<AtomicUsize>;
    type LocalPtr<T> = Local<AtomicPtr<T>>;

    #[inline]
    fn fence(self, at: impl Into<At>) {
        Native.fence(at);
    }
    fn spin_hint(self) {
        Native.spin_hint();
    }
}

static DEPTH: Local<AtomicUsize> = Local::from_raw(AtomicUsize::new(0));

// SAFETY: one static for each kernel; there is one task.
unsafe impl<S: Scheme> NotifierKernel for Bare<S> {
    const CONFIG_MMU_NOTIFIER: bool = S::CONFIG_MMU_NOTIFIER;
    type Mm = Mm<S>;
    type Lock = PollingLock<Self>;
    type WaitQueue = ();
    type Walks = S::Walks;

    fn new_wait_queue() {}
    #[inline]
    fn walks(&self) -> &S::Walks {
        S::walks()
    }
    #[inline]
    fn walk_depth(&self) -> &Local<AtomicUsize> {
        &DEPTH
    }
    fn wait_event<R>(self, (): &(), ready: impl FnMut() -> Option<R>) -> R {
        self.spin_until(ready)
    }
    fn wake_up_all(self, (): &()) {}
}

/// An address space, with subscribers that stay.
pub struct Mm<S: Scheme> {
    chain: Chain<Bare<S>>,
}

impl<S: Scheme> fmt::Debug for Mm<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.chain.fmt(f)
    }
}

// SAFETY: a field.
unsafe impl<S: Scheme> NotifierMm<Bare<S>> for Mm<S> {
    #[inline]
    fn notifiers(&self) -> &Chain<Bare<S>> {
        &self.chain
    }
}

struct Mmap<S: Scheme>(&'static Mm<S>);

// SAFETY: there is one task.
unsafe impl<S: Scheme> MmapWrite<Bare<S>> for Mmap<S> {
    fn mm(&self) -> &Mm<S> {
        self.0
    }
    fn mm_users(&self) -> usize {
        1
    }
    fn mm_take_all_locks(&mut self) -> Result<(), Interrupted> {
        Ok(())
    }
    fn mm_drop_all_locks(&mut self) {}
}

/// Who is told: it counts.
#[derive(Debug, Default)]
pub struct Counter {
    running: AtomicUsize,
    seq: AtomicUsize,
}

impl Counter {
    /// A start, as KVM and GRU have it.
    #[inline]
    pub fn start(&self) {
        self.running.store(self.running.load(Relaxed) + 1, Relaxed);
    }

    /// An end.
    #[inline]
    pub fn end(&self) {
        self.seq.store(self.seq.load(Relaxed) + 1, Relaxed);
        self.running.store(self.running.load(Relaxed) - 1, Relaxed);
    }
}

impl<S: Scheme> MmuNotifier<Bare<S>> for Counter {
    fn release(&self, _: &Mm<S>) {}
}

impl<S: Scheme> Mirror<Bare<S>> for Counter {
    fn invalidate_range_start(&self, _: &Mm<S>, _: Invalidation<'_>) {
        self.start();
    }
    fn invalidate_range_end(&self, _: &Mm<S>, _: Invalidation<'_>) {
        self.end();
    }
}

impl<S: Scheme> MmuIntervalNotifier<Bare<S>> for Counter {
    fn invalidate<'a>(&self, invalidating: Invalidating<'a, Bare<S>>) -> Result<Invalidated<'a, Bare<S>>, WouldBlock> {
        self.start();
        Ok(invalidating.set_seq())
    }
}

fn kernel<S: Scheme>() -> Bare<S> {
    Bare(PhantomData)
}

fn node<S: Scheme>() -> &'static Node<Bare<S>> {
    let counter: &'static Counter = Box::leak(Box::default());
    // SAFETY: it stays.
    Box::leak(Box::new(unsafe { Node::new(Contract::Mirror(NonNull::from(counter))) }))
}

impl<S: Scheme> Mm<S> {
    /// One with so many subscribers. It stays, and so do they.
    pub fn with_subscribers(subscribers: usize) -> &'static Self {
        let mm: &'static Mm<S> = Box::leak(Box::new(Mm { chain: Chain::default() }));
        for _ in 0..subscribers {
            mm.register(node());
        }
        mm
    }

    /// One with so many interval subscribers, a page each, one behind the other.
    pub fn with_intervals(subscribers: usize) -> &'static Self {
        let mm = Mm::<S>::with_subscribers(0);
        for page in 0..subscribers {
            mm.insert_interval(page);
        }
        mm
    }

    fn register(&'static self, node: &'static Node<Bare<S>>) {
        // SAFETY: node and mm stay.
        unsafe { self.chain.register(kernel(), &mut Mmap(self), node) }
            .expect("it has users, and there are no signals");
    }

    fn insert_interval(&'static self, page: usize) -> &'static IntervalNode<Bare<S>> {
        let counter: &'static Counter = Box::leak(Box::default());
        // SAFETY: it stays.
        let node: &'static IntervalNode<Bare<S>> =
            Box::leak(Box::new(unsafe { IntervalNode::new(NonNull::from(counter)) }));
        // SAFETY: node and mm stay.
        unsafe { self.chain.insert_interval(kernel(), &mut Mmap(self), node, page * 4096, 4096) }
            .expect("it has users, and there are no signals");
        node
    }

    /// A pair.
    #[inline]
    pub fn pair(&self, range: &Range) {
        drop(RangeGuard::start(kernel(), self, range));
    }

    /// So many pairs, each around a change of one page.
    pub fn pairs(&self, rounds: u64) -> Duration {
        let range = Range::new(0x1000..0x2000, Event::Clear).expect("it has addresses");
        let begun = Instant::now();
        for _ in 0..rounds {
            let guard = RangeGuard::start(kernel(), black_box(self), &range);
            black_box(&guard);
        }
        begun.elapsed()
    }

    /// Likewise, with nothing between start and end that the compiler cannot see through.
    #[inline(never)]
    pub fn unused_pairs(&self, rounds: u64) -> Duration {
        let range = Range::new(0x1000..0x2000, Event::Clear).expect("it has addresses");
        let begun = Instant::now();
        for _ in 0..rounds {
            black_box(self).pair(&range);
        }
        begun.elapsed()
    }

    /// So many times, somebody subscribes and unsubscribes.
    pub fn subscriptions(&'static self, rounds: u64) -> Duration {
        let node = node();
        let begun = Instant::now();
        for _ in 0..rounds {
            self.register(node);
            // SAFETY: nobody else does.
            unsafe { self.chain.unregister(kernel(), self, node) }.expect("it is subscribed, and no callback runs");
        }
        begun.elapsed()
    }

    /// So many times, an interval subscriber begins to read and finds that nothing has come.
    pub fn reads(&'static self, rounds: u64) -> Duration {
        let node = self.insert_interval(1);
        let begun = Instant::now();
        for _ in 0..rounds {
            let seq = self.chain.read_begin(kernel(), node);
            black_box(node.read_retry(black_box(seq)));
        }
        begun.elapsed()
    }
}

/// What a pair costs at least where nobody is subscribed: one relaxed load, and a branch.
#[inline(never)]
pub fn load_and_branch(rounds: u64) -> Duration {
    static WORD: AtomicUsize = AtomicUsize::new(0);
    let begun = Instant::now();
    for _ in 0..rounds {
        if black_box(&WORD).load(Relaxed) != 0 {
            unlikely();
        }
    }
    begun.elapsed()
}

#[cold]
#[inline(never)]
fn unlikely() {
    black_box(());
}
