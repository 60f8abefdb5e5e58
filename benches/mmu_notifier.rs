//! MMU notifiers: `cargo bench --bench mmu_notifier`.
//!
//! *nobody*: a pair where nobody is subscribed, beside one relaxed load and a branch; the two must not differ by more than a fifth.
//!
//! *pair*: start and end with so many subscribers, under each scheme of walks, beside what else one would write: a vector in a mutex, in a
//! reader-writer lock, in an `arc-swap`. All call the same callbacks, through trait objects.
//!
//! *subscription*: somebody subscribes and unsubscribes, among so many; `owned` with memory of its own and a reference to the mm, `shared` as one more
//! user of what is there. *intervals*: a pair over one page, among so many subscribers of a page each.
//!
//! One thread up to here: what is seen is the price of instructions. Then there are two, which is all that is seen of contention:
//!
//! *beside a pair*: a pair with four subscribers, while another thread does the same. *read*: an interval subscriber looks something up until nothing has come in
//! between, alone, while another thread invalidates elsewhere, and while it invalidates just that. Beside it: a lock for who looks up and who invalidates, and a
//! snapshot in an `arc-swap` that each invalidation replaces.

use std::sync::atomic::{AtomicUsize, Ordering::*};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use core::hint::black_box;
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, criterion_group, criterion_main};
use lazytlb_native::notifier::{ByEpochs, ByHazards, BySrcu, Counter, Mm, Quiet, Scheme, beside, load_and_branch};

const SUBSCRIBERS: [usize; 5] = [0, 1, 4, 16, 64];

/// A peer's subscriber.
trait Peer: Send + Sync {
    fn start(&self);
    fn end(&self);
}

impl Peer for Counter {
    fn start(&self) {
        Counter::start(self);
    }
    fn end(&self) {
        Counter::end(self);
    }
}

impl Peer for Quiet {
    fn start(&self) {
        self.told();
    }
    fn end(&self) {
        self.told();
    }
}

type Peers = Vec<Arc<dyn Peer>>;

fn peers<P: Peer + 'static>(count: usize, new: fn() -> P) -> Peers {
    (0..count).map(|_| Arc::new(new()) as Arc<dyn Peer>).collect()
}

/// A pair, by what goes through the subscribers.
fn pair(each: impl Fn(fn(&dyn Peer))) {
    each(|peer| peer.start());
    each(|peer| peer.end());
}

/// So many times, `f`.
fn timed(rounds: u64, mut f: impl FnMut()) -> Duration {
    let begun = Instant::now();
    (0..rounds).for_each(|_| f());
    begun.elapsed()
}

fn peer_pairs(group: &mut BenchmarkGroup<'_, WallTime>, count: usize) {
    let (mutex, lock, swap) =
        (Mutex::new(counters(count)), RwLock::new(counters(count)), ArcSwap::from_pointee(counters(count)));
    group.bench_function(BenchmarkId::new("Mutex<Vec>", count), |bencher| {
        bencher.iter_custom(|rounds| {
            timed(rounds, || pair(|f| black_box(&mutex).lock().unwrap().iter().for_each(|peer| f(&**peer))))
        });
    });
    group.bench_function(BenchmarkId::new("RwLock<Vec>", count), |bencher| {
        bencher.iter_custom(|rounds| {
            timed(rounds, || pair(|f| black_box(&lock).read().unwrap().iter().for_each(|peer| f(&**peer))))
        });
    });
    group.bench_function(BenchmarkId::new("ArcSwap<Vec>", count), |bencher| {
        bencher.iter_custom(|rounds| {
            timed(rounds, || pair(|f| black_box(&swap).load().iter().for_each(|peer| f(&**peer))))
        });
    });
}

fn counters(count: usize) -> Peers {
    peers(count, Counter::default)
}

fn peer_subscriptions(group: &mut BenchmarkGroup<'_, WallTime>, count: usize) {
    let (mutex, lock, swap) =
        (Mutex::new(counters(count)), RwLock::new(counters(count)), ArcSwap::from_pointee(counters(count)));
    let one: Arc<dyn Peer> = Arc::new(Counter::default());
    let leave = |peers: &mut Peers| peers.retain(|peer| !Arc::ptr_eq(peer, &one));
    group.bench_function(BenchmarkId::new("Mutex<Vec>", count), |bencher| {
        bencher.iter(|| {
            mutex.lock().unwrap().push(Arc::clone(&one));
            leave(&mut mutex.lock().unwrap());
        });
    });
    group.bench_function(BenchmarkId::new("RwLock<Vec>", count), |bencher| {
        bencher.iter(|| {
            lock.write().unwrap().push(Arc::clone(&one));
            leave(&mut lock.write().unwrap());
        });
    });
    group.bench_function(BenchmarkId::new("ArcSwap<Vec>", count), |bencher| {
        let change = |f: &dyn Fn(&mut Peers)| {
            swap.rcu(|peers| {
                let mut peers = Peers::clone(peers);
                f(&mut peers);
                peers
            });
        };
        bencher.iter(|| {
            change(&|peers| peers.push(Arc::clone(&one)));
            change(&leave);
        });
    });
}

fn of_scheme<S: Scheme>(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pair");
    for count in SUBSCRIBERS {
        let mm = Mm::<S>::with_subscribers(count);
        group
            .bench_function(BenchmarkId::new(S::NAME, count), |bencher| bencher.iter_custom(|rounds| mm.pairs(rounds)));
    }
    group.finish();
    let mut group = criterion.benchmark_group("subscription");
    for count in SUBSCRIBERS {
        let mm = Mm::<S>::with_subscribers(count);
        group.bench_function(BenchmarkId::new(S::NAME, count), |bencher| {
            bencher.iter_custom(|rounds| mm.subscriptions(rounds));
        });
    }
    group.finish();
    let mut group = criterion.benchmark_group("beside a pair");
    let mm = Mm::<S>::with_quiet(4);
    group.bench_function(S::NAME, |bencher| {
        bencher.iter_custom(|rounds| beside(|| mm.other_pair(1), || mm.pairs(rounds)));
    });
    group.finish();
}

fn peers_beside_a_pair(group: &mut BenchmarkGroup<'_, WallTime>) {
    let quiet = || peers(4, || Quiet);
    let (mutex, lock, swap) = (Mutex::new(quiet()), RwLock::new(quiet()), ArcSwap::from_pointee(quiet()));
    type Each<'a> = &'a (dyn Fn(fn(&dyn Peer)) + Sync);
    let ways: [(&str, Each<'_>); 3] = [
        ("Mutex<Vec>", &|f| mutex.lock().unwrap().iter().for_each(|peer| f(&**peer))),
        ("RwLock<Vec>", &|f| lock.read().unwrap().iter().for_each(|peer| f(&**peer))),
        ("ArcSwap<Vec>", &|f| swap.load().iter().for_each(|peer| f(&**peer))),
    ];
    for (name, each) in ways {
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|rounds| beside(|| pair(each), || timed(rounds, || pair(each))));
        });
    }
}

/// The page that is looked up, and one that is not.
const HERE: usize = 1;
const ELSEWHERE: usize = 9;

fn reads(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("read");
    let mm = Mm::<ByHazards>::with_intervals(16);
    group.bench_function(BenchmarkId::new("interval", "alone"), |bencher| {
        bencher.iter_custom(|rounds| mm.reads(rounds))
    });
    for (name, page) in [("elsewhere", ELSEWHERE), ("here", HERE)] {
        group.bench_function(BenchmarkId::new("interval", name), |bencher| {
            bencher.iter_custom(|rounds| beside(|| mm.other_pair(page), || mm.reads(rounds)));
        });
    }
    let word = AtomicUsize::new(0);
    let (mutex, lock, swap) = (Mutex::new(()), RwLock::new(()), ArcSwap::from_pointee(0));
    let look = || {
        black_box(word.load(Acquire));
    };
    let change = || word.store(1, Release);
    let swapped = || {
        loop {
            let seen = swap.load();
            look();
            if Arc::ptr_eq(&seen, &swap.load()) {
                break;
            }
        }
    };
    type Step<'a> = &'a (dyn Fn() + Sync);
    let under_mutex = |f: Step<'_>| {
        let _guard = mutex.lock().unwrap();
        f();
    };
    let ways: [(&str, Step<'_>, Step<'_>); 3] = [
        ("Mutex", &|| under_mutex(&look), &|| under_mutex(&change)),
        (
            "RwLock",
            &|| {
                let _guard = lock.read().unwrap();
                look();
            },
            &|| {
                let _guard = lock.write().unwrap();
                change();
            },
        ),
        ("ArcSwap", &swapped, &|| {
            change();
            swap.store(Arc::new(1));
        }),
    ];
    for (name, reads, invalidates) in ways {
        group.bench_function(BenchmarkId::new(name, "alone"), |bencher| {
            bencher.iter_custom(|rounds| timed(rounds, reads));
        });
        group.bench_function(BenchmarkId::new(name, "beside"), |bencher| {
            bencher.iter_custom(|rounds| beside(invalidates, || timed(rounds, reads)));
        });
    }
    group.finish();
}

fn nobody(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("nobody");
    let mm = Mm::<ByHazards>::with_subscribers(0);
    group.bench_function("pair", |bencher| bencher.iter_custom(|rounds| mm.unused_pairs(rounds)));
    group.bench_function("load and branch", |bencher| bencher.iter_custom(load_and_branch));
    group.finish();
}

fn list(criterion: &mut Criterion) {
    of_scheme::<ByHazards>(criterion);
    of_scheme::<ByEpochs>(criterion);
    of_scheme::<BySrcu>(criterion);
    let mut group = criterion.benchmark_group("pair");
    for count in SUBSCRIBERS {
        peer_pairs(&mut group, count);
    }
    group.finish();
    let mut group = criterion.benchmark_group("subscription");
    for count in SUBSCRIBERS {
        peer_subscriptions(&mut group, count);
    }
    let mm = Mm::<ByHazards>::with_subscribers(0);
    group.bench_function("owned", |bencher| bencher.iter_custom(|rounds| mm.owned(rounds)));
    group.bench_function("shared", |bencher| bencher.iter_custom(|rounds| mm.shared(rounds)));
    group.finish();
    let mut group = criterion.benchmark_group("beside a pair");
    peers_beside_a_pair(&mut group);
    group.finish();
}

fn intervals(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("intervals");
    for count in [1, 16, 1_000, 100_000] {
        let mm = Mm::<ByHazards>::with_intervals(count);
        group.bench_function(BenchmarkId::new("pair", count), |bencher| bencher.iter_custom(|rounds| mm.pairs(rounds)));
    }
    group.finish();
}

criterion_group!(benches, nobody, list, intervals, reads);
criterion_main!(benches);
