//! MMU notifiers on native memory: what a pair, a subscription and a reader cost by themselves, and beside a second thread that invalidates.

use core::fmt;
use core::hint::black_box;
use core::marker::PhantomData;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering::*};
use std::sync::LazyLock;
use std::thread;
use std::time::{Duration, Instant};

use lazytlb::mmu_notifier::{
    Chain, Contract, Epochs, Event, Hazards, Interrupted, IntervalNode, Invalidated, Invalidating, Invalidation,
    Mirror, MmapWrite, MmuIntervalNotifier, MmuNotifier, Node, NotifierKernel, NotifierMm, NotifierTask, PollingLock,
    Range, RangeGuard, SharedSubscription, Srcu, Subscription, Walks, WouldBlock,
};
use lazytlb_core::Memory;
use lazytlb_core::memory::At;
use lazytlb_core::mm::AlwaysRefCounted;
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

/// A kernel of so many tasks, one for each CPU.
const CPUS: usize = 8;

/// The handle of a task.
#[derive(Debug)]
pub struct Bare<S> {
    cpu: usize,
    scheme: PhantomData<S>,
}

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

/// On a line of its own: other tasks have others.
#[repr(align(128))]
struct Task(NotifierTask<Local<AtomicUsize>>);

const fn zero() -> Local<AtomicUsize> {
    Local::from_raw(AtomicUsize::new(0))
}

static TASKS: [Task; CPUS] = [const { Task(NotifierTask::from_parts(zero(), zero())) }; CPUS];

// SAFETY: one static for each kernel; a word for each task.
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
    fn walk_hint(self) -> usize {
        self.cpu
    }
    #[inline]
    fn task(&self) -> &NotifierTask<Local<AtomicUsize>> {
        &TASKS[self.cpu].0
    }
    fn wait_event<R>(self, (): &(), ready: impl FnMut() -> Option<R>) -> R {
        self.spin_until(ready)
    }
    fn wake_up_all(self, (): &()) {}
}

/// An address space, with subscribers that stay.
pub struct Mm<S: Scheme> {
    chain: Chain<Bare<S>>,
    /// `mm_count`.
    count: AtomicUsize,
}

// SAFETY: it stays for ever.
unsafe impl<S: Scheme> AlwaysRefCounted for Mm<S> {
    fn inc_ref(&self) {
        self.count.fetch_add(1, Relaxed);
    }
    unsafe fn dec_ref(mm: NonNull<Self>) {
        // SAFETY: it stays for ever.
        unsafe { mm.as_ref() }.count.fetch_sub(1, AcqRel);
    }
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

// SAFETY: nobody invalidates while somebody subscribes here.
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
    of_cpu(0)
}

fn of_cpu<S: Scheme>(cpu: usize) -> Bare<S> {
    Bare { cpu, scheme: PhantomData }
}

/// Who is told, and writes nothing: many may tell it at once.
#[derive(Debug)]
pub struct Quiet;

impl Quiet {
    /// A start, or an end.
    #[inline]
    pub fn told(&self) {
        black_box(self);
    }
}

impl<S: Scheme> MmuNotifier<Bare<S>> for Quiet {
    fn release(&self, _: &Mm<S>) {}
}

impl<S: Scheme> Mirror<Bare<S>> for Quiet {
    fn invalidate_range_start(&self, _: &Mm<S>, _: Invalidation<'_>) {
        self.told();
    }
    fn invalidate_range_end(&self, _: &Mm<S>, _: Invalidation<'_>) {
        self.told();
    }
}

/// Runs `f` while another thread does something again and again.
pub fn beside(other: impl Fn() + Sync, f: impl FnOnce() -> Duration) -> Duration {
    let (begun, over) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Relaxed) {
                other();
                begun.store(true, Relaxed);
            }
        });
        while !begun.load(Relaxed) {
            thread::yield_now();
        }
        let time = f();
        over.store(true, Relaxed);
        time
    })
}

fn node<S: Scheme>(subscriber: impl Mirror<Bare<S>> + 'static) -> &'static Node<Bare<S>> {
    let subscriber: &'static _ = Box::leak(Box::new(subscriber));
    // SAFETY: it stays.
    Box::leak(Box::new(unsafe { Node::new(Contract::Mirror(NonNull::from(subscriber))) }))
}

impl<S: Scheme> Mm<S> {
    /// One with so many subscribers. It stays, and so do they.
    pub fn with_subscribers(subscribers: usize) -> &'static Self {
        let mm: &'static Mm<S> = Box::leak(Box::new(Mm { chain: Chain::default(), count: AtomicUsize::new(1) }));
        for _ in 0..subscribers {
            mm.register(node(Counter::default()));
        }
        mm
    }

    /// One with so many subscribers that write nothing.
    pub fn with_quiet(subscribers: usize) -> &'static Self {
        let mm = Mm::<S>::with_subscribers(0);
        for _ in 0..subscribers {
            mm.register(node(Quiet));
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

    /// A pair around a change of one page, by the second thread.
    pub fn other_pair(&self, page: usize) {
        let range = Range::new(page * 4096..(page + 1) * 4096, Event::Clear).expect("it has addresses");
        drop(RangeGuard::start(of_cpu(1), self, &range));
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
        let node = node(Counter::default());
        let begun = Instant::now();
        for _ in 0..rounds {
            self.register(node);
            // SAFETY: nobody else does.
            unsafe { self.chain.unregister(kernel(), self, node) }.expect("it is subscribed, and no callback runs");
        }
        begun.elapsed()
    }

    /// So many times, a subscriber that owns what it needs is made and dropped.
    pub fn owned(&'static self, rounds: u64) -> Duration {
        let begun = Instant::now();
        for _ in 0..rounds {
            let made = Subscription::mirror(kernel(), &mut Mmap(self), Counter::default());
            drop(black_box(made.map_err(|(error, _)| error).expect("it has users, and there are no signals")));
        }
        begun.elapsed()
    }

    /// So many times, one more user of a subscriber that is there comes and goes.
    pub fn shared(&'static self, rounds: u64) -> Duration {
        let get = || SharedSubscription::mirror(kernel(), &mut Mmap(self), || Quiet).expect("it has users");
        let first = get();
        let begun = Instant::now();
        for _ in 0..rounds {
            drop(black_box(get()));
        }
        let time = begun.elapsed();
        drop(first);
        time
    }

    /// So many times, an interval subscriber to the page of this number looks something up, until nothing has come in between.
    pub fn reads(&'static self, rounds: u64) -> Duration {
        let (node, word) = (self.insert_interval(1), AtomicUsize::new(0));
        let begun = Instant::now();
        for _ in 0..rounds {
            loop {
                let seq = self.chain.read_begin(kernel(), node);
                black_box(word.load(Acquire));
                if !node.read_retry(black_box(seq)) {
                    break;
                }
            }
        }
        let time = begun.elapsed();
        self.remove_interval(node);
        time
    }

    fn remove_interval(&self, node: &IntervalNode<Bare<S>>) {
        // SAFETY: nobody else does.
        unsafe { self.chain.remove_interval(kernel(), self, node) }.expect("it is subscribed, and this is no callback");
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
