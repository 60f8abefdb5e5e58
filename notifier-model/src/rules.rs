//! What must hold, by numbers.

use lazytlb_machine::rules;

rules! {
    /// What must hold, by the numbers that the literature gives it; what the machine finds by itself (a freed page that is used, who waits for ever) has
    /// a verdict and no number.
    Invariant {
        I1 "secondary-mapping-of-freed" "a page is freed that a device still translates to"
        I2 "mapped-while-invalidated" "a device maps what is being invalidated"
        I3 "old-page-after-new" "a device uses the page that was there, when the CPUs have another one"
        I4 "unbalanced" "a subscriber is told of an end without a start, or of a start without an end"
        I5 "callback-after-unregister" "a callback runs when unsubscribing is over"
        I6 "freed-before-release" "a page of an address space that goes is freed before a subscriber was released"
        I8 "sleeping-callback" "a callback sleeps where the invalidation must not block, or with a spinlock held"
        I9 "mm-count" "the mm's struct goes while somebody is subscribed"
        I10 "tree-changed" "the tree of interval subscribers changes while an invalidation goes through it"
        I11 "sequence" "no invalidation goes on, and the sequence of interval subscribers is odd, or one of them waits for the end"
        I12 "subscriber-sequence" "an interval subscriber's own sequence is even"
        I13 "retry-unlocked" "what was looked up is used without the lock under which it was told to be current"
        I14 "not-notified" "an entry changes that somebody may mirror, and nobody was told"
        I15 "table-freed-under-walker" "a page table is freed that a device still walks"
        I16 "starved" "a driver looks up again and again what nobody has changed, or a device faults where nothing is to be mended"
    }
}
