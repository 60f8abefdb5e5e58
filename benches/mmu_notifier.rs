//! MMU notifiers: `cargo bench --bench mmu_notifier`.
//!
//! *nobody*: a pair where nobody is subscribed, beside one relaxed load and a branch; the two must not differ by more than a fifth.
//!
//! *pair*: start and end with so many subscribers, under each scheme of walks, beside what else one would write: a vector in a mutex, in a
//! reader-writer lock, in an `arc-swap`. All call the same callbacks, through trait objects.
//!
//! *subscription*: somebody subscribes and unsubscribes, among so many. *intervals*: a pair over one page, among so many subscribers of a page each;
//! *read*: one of them begins to read, and finds that nothing has come.
//!
//! One thread: what is seen is the price of instructions, and not of contention.

use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use core::hint::black_box;
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, criterion_group, criterion_main};
use lazytlb_native::notifier::{ByEpochs, ByHazards, BySrcu, Counter, Mm, Scheme, load_and_branch};

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

type Peers = Vec<Arc<dyn Peer>>;

fn peers(count: usize) -> Peers {
    (0..count).map(|_| Arc::new(Counter::default()) as Arc<dyn Peer>).collect()
}

/// So many pairs, by what goes through the subscribers.
fn pairs(rounds: u64, mut each: impl FnMut(fn(&dyn Peer))) -> Duration {
    let begun = Instant::now();
    for _ in 0..rounds {
        each(|peer| peer.start());
        each(|peer| peer.end());
    }
    begun.elapsed()
}

fn peer_pairs(group: &mut BenchmarkGroup<'_, WallTime>, count: usize) {
    let (mutex, lock, swap) =
        (Mutex::new(peers(count)), RwLock::new(peers(count)), ArcSwap::from_pointee(peers(count)));
    group.bench_function(BenchmarkId::new("Mutex<Vec>", count), |bencher| {
        bencher.iter_custom(|rounds| {
            pairs(rounds, |f| black_box(&mutex).lock().unwrap().iter().for_each(|peer| f(&**peer)))
        });
    });
    group.bench_function(BenchmarkId::new("RwLock<Vec>", count), |bencher| {
        bencher.iter_custom(|rounds| {
            pairs(rounds, |f| black_box(&lock).read().unwrap().iter().for_each(|peer| f(&**peer)))
        });
    });
    group.bench_function(BenchmarkId::new("ArcSwap<Vec>", count), |bencher| {
        bencher.iter_custom(|rounds| pairs(rounds, |f| black_box(&swap).load().iter().for_each(|peer| f(&**peer))));
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
}

fn intervals(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("intervals");
    for count in [1, 16, 1_000, 100_000] {
        let mm = Mm::<ByHazards>::with_intervals(count);
        group.bench_function(BenchmarkId::new("pair", count), |bencher| bencher.iter_custom(|rounds| mm.pairs(rounds)));
    }
    let mm = Mm::<ByHazards>::with_intervals(16);
    group.bench_function("read", |bencher| bencher.iter_custom(|rounds| mm.reads(rounds)));
    group.finish();
}

criterion_group!(benches, nobody, list, intervals);
criterion_main!(benches);
