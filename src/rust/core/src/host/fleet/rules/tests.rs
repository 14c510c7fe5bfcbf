//! Stories of launches, with times as arguments.

use std::time::Duration;

use proptest::prelude::*;

use super::*;

const PATIENCE: Duration = Duration::from_secs(600);

fn at(seconds: f64) -> Time {
    Duration::from_secs_f64(seconds)
}

/// A fleet of four.
fn four() -> Rules {
    Rules::new(4, PATIENCE)
}

/// The slots at which launches begin.
fn slots(launches: &[Launch]) -> Vec<SlotId> {
    launches.iter().map(|launch| launch.slot).collect()
}

/// Launches once, at the end of the pause; nothing else is in flight.
fn next(rules: &mut Rules) -> Launch {
    let now = rules.pause;
    let launches = rules.ask(now, 1);
    assert_eq!(launches.len(), 1);
    launches[0]
}

/// A daemon joins. Returns the launch that has brought it.
fn joins(rules: &mut Rules, endpoint: SlotId, peer: PeerId) -> Option<LaunchId> {
    let launch = rules.arrives(endpoint, peer);
    assert_eq!(rules.connected(endpoint, peer), launch.is_some());
    launch
}

#[test]
fn one_launch_for_each_task_that_waits_less_those_in_flight_and_no_more_than_slots() {
    let mut rules = four();
    assert!(rules.ask(at(0.0), 0).is_empty());
    assert_eq!(slots(&rules.ask(at(0.0), 2)), [0, 1]);
    // The tasks still wait: no herd.
    assert!(rules.ask(at(1.0), 2).is_empty());
    assert_eq!(slots(&rules.ask(at(2.0), 100)), [2, 3]);
    assert!(rules.ask(at(3.0), 100).is_empty());
    assert!(joins(&mut rules, 0, 1).is_some());
    assert!(rules.ask(at(4.0), 100).is_empty());
    // It leaves: there is room again.
    assert!(!rules.gone(at(5.0), 0, 1, Departure::Well));
    let again = rules.ask(at(5.0), 100);
    assert_eq!((slots(&again), again[0].before), (vec![0], 1));
}

#[test]
fn daemons_that_came_otherwise_count_and_slots_are_used_in_turn() {
    let mut rules = four();
    assert_eq!(rules.begin(at(0.0), 1).unwrap().slot, 1);
    assert_eq!(rules.begin(at(0.0), 1), None);
    assert_eq!(rules.begin(at(0.0), 4), None);
    // At a slot without a launch, at a taken one, and at a URL beyond the slots.
    for (endpoint, peer) in [(0, 1), (0, 2), (9, 3)] {
        assert_eq!(joins(&mut rules, endpoint, peer), None);
    }
    assert!(rules.ask(at(0.0), 10).is_empty());
    rules.gone(at(1.0), 9, 3, Departure::Failed);
    // The slot that has been used least.
    assert_eq!(slots(&rules.ask(at(1.0), 10)), [0]);
    assert_eq!(rules.failures, 0, "others do not count as failures");
}

#[test]
fn a_daemon_that_ends_with_its_first_task_is_one_failure_whoever_is_told_first() {
    let mut rules = four();
    let launch = rules.ask(at(0.0), 1)[0];
    assert_eq!(rules.arrives(0, 1), Some(launch.id));
    // It has been given the task, and its command has ended with it, before it counts as connected.
    assert_eq!(rules.failed(at(1.0), launch.id), None);
    assert!(rules.ask(at(1.0), 1).is_empty(), "it is still in flight");
    assert_eq!(rules.tick(at(0.0) + PATIENCE), (vec![], false));
    assert!(rules.connected(0, 1));
    assert!(!rules.gone(at(1.0), 0, 1, Departure::Failed));
    assert_eq!((rules.failures, rules.alive()), (1, 0));
    next(&mut rules);
}

#[test]
fn a_launch_that_never_connects_is_given_up_and_counted() {
    let mut rules = four();
    let first = rules.ask(at(1.0), 1)[0];
    assert_eq!(rules.deadline(), Some(at(601.0)));
    assert_eq!(rules.tick(at(600.9)), (vec![], false));
    assert_eq!(rules.tick(at(601.0)), (vec![first.id], false));
    assert_eq!((rules.failures, rules.deadline()), (1, None));
    // Its command may end later: nothing comes of that.
    assert_eq!(rules.failed(at(602.0), first.id), None);
    // Another slot, as its daemon may still come to this one.
    let second = next(&mut rules);
    assert_eq!(second.slot, 1);
    assert_eq!(rules.tick(at(601.5) + PATIENCE), (vec![second.id], false));
    assert_eq!(rules.failures, 2);
}

#[test]
fn a_daemon_that_comes_too_late_is_sent_away_if_there_are_enough() {
    let mut rules = Rules::new(1, PATIENCE);
    rules.ask(at(0.0), 1);
    rules.tick(PATIENCE);
    let second = next(&mut rules);
    // It is taken for the second one, which is in flight.
    assert!(!rules.is_too_late(0));
    assert_eq!(joins(&mut rules, 0, 1), Some(second.id));
    // This is the second one; only one was given up.
    assert!(rules.is_too_late(0));
    assert!(!rules.is_too_late(0));
    rules.gone(at(700.0), 0, 1, Departure::Well);
    // If there is room, it is welcome.
    rules.ask(at(700.0), 1);
    rules.tick(at(1300.0));
    assert!(!rules.is_too_late(0));
    assert_eq!(joins(&mut rules, 0, 2), None);
    assert_eq!((rules.failures, rules.slots[0].late), (0, 0));
}

#[test]
fn a_daemon_that_is_lost_is_replaced_as_the_queue_asks() {
    let mut rules = four();
    for slot in 0..4 {
        rules.begin(at(0.0), slot);
        assert!(joins(&mut rules, slot, slot as PeerId + 1).is_some());
    }
    // As by scancel: all at once, in the middle of their first task.
    for slot in 0..4 {
        assert!(!rules.gone(at(9.0), slot, slot as PeerId + 1, Departure::Failed));
    }
    assert_eq!(
        rules.failures, 1,
        "none was launched because another had failed"
    );
    assert!(rules.ask(at(9.0), 0).is_empty());
    assert!(rules.ask(at(9.0), 3).is_empty(), "there is a pause");
    assert_eq!(rules.deadline(), Some(at(9.5)));
    assert_eq!(rules.ask(at(9.5), 3).len(), 3);
    // One of them finishes a task before it is lost: no pause.
    joins(&mut rules, 0, 5);
    rules.gone(at(10.0), 0, 5, Departure::Well);
    assert_eq!(rules.ask(at(10.0), 3).len(), 1);
}

#[test]
fn failures_one_after_another_have_an_end() {
    let mut rules = four();
    let mut pauses = vec![];
    let mut now = at(0.0);
    for failure in 1..=MOST_FAILURES {
        let launch = next(&mut rules);
        pauses.push((rules.pause.saturating_sub(now)).as_millis());
        now = rules.pause;
        let last = failure == MOST_FAILURES;
        if failure % 2 == 0 {
            joins(&mut rules, launch.slot, failure);
            let over = rules.gone(now, launch.slot, failure, Departure::Failed);
            assert_eq!(over, last);
        } else {
            assert_eq!(rules.failed(now, launch.id), Some(last));
        }
    }
    assert_eq!(pauses, [0, 500, 1000, 2000, 4000]);
    assert!(rules.is_over());
    assert!(rules.ask(at(1e6), 100).is_empty());
    assert_eq!(rules.deadline(), None);
    // The user starts a daemon by hand, or one comes late.
    joins(&mut rules, 0, 9);
    assert!(!rules.has_stopped());
    assert_eq!(rules.ask(at(1e6), 100).len(), 3);
}

#[test]
fn failures_of_launches_together_are_one_and_a_success_begins_the_count_anew() {
    let mut rules = four();
    for round in 1..=3 {
        let now = rules.pause;
        let launches = rules.ask(now, 4);
        assert_eq!(launches.len(), 4);
        for launch in launches {
            assert_eq!(rules.failed(now, launch.id), Some(false));
        }
        assert_eq!(rules.failures, round);
    }
    // Two of the next round: one succeeds, one fails thereafter.
    let now = rules.pause;
    let launches = rules.ask(now, 2);
    joins(&mut rules, launches[0].slot, 1);
    rules.gone(now, launches[0].slot, 1, Departure::Well);
    assert_eq!(rules.failures, 0);
    assert_eq!(rules.failed(now, launches[1].id), Some(false));
    assert_eq!(rules.failures, 1);
}

#[test]
fn where_a_quota_ends_launches_goes_on_when_a_daemon_has_left() {
    let mut rules = four();
    let two = rules.ask(at(0.0), 2);
    for launch in &two {
        joins(&mut rules, launch.slot, launch.slot as PeerId + 1);
    }
    for _ in 0..MOST_FAILURES {
        let launch = next(&mut rules);
        rules.failed(rules.pause, launch.id);
    }
    assert!(rules.is_over());
    rules.gone(at(99.0), 0, 1, Departure::Well);
    assert_eq!(rules.ask(at(99.0), 1).len(), 1);
}

#[test]
fn a_slot_whose_url_changes_forgets_its_launch() {
    let mut rules = four();
    let launch = rules.ask(at(0.0), 1)[0];
    assert_eq!(rules.moved(0), Some(launch.id));
    assert_eq!(rules.moved(0), None);
    assert_eq!(rules.moved(9), None);
    assert_eq!((rules.failures, rules.in_flight), (0, 0));
    assert_eq!(rules.ask(at(0.0), 1)[0].slot, 1);
    // Its daemon, if there is one, has been sent away.
    joins(&mut rules, 1, 1);
    assert!(!rules.gone(at(0.0), 1, 1, Departure::SentAway));
    assert_eq!((rules.failures, rules.alive()), (0, 0));
    assert_eq!(rules.ask(at(0.0), 9).len(), 3);
    rules.reopened(0);
    assert_eq!(slots(&rules.ask(at(0.0), 9)), [0]);
}

/// One step of a history; numbers choose among what there is.
#[derive(Clone, Debug)]
enum Step {
    Ask(usize),
    Connects(usize),
    Fails(usize),
    Goes(usize, Departure),
    Comes(usize),
    Wait(u32),
}

fn step() -> impl Strategy<Value = Step> {
    let how = prop_oneof![
        Just(Departure::Well),
        Just(Departure::Failed),
        Just(Departure::SentAway)
    ];
    prop_oneof![
        4 => (0..8usize).prop_map(Step::Ask),
        4 => (0..8usize).prop_map(Step::Connects),
        2 => (0..8usize).prop_map(Step::Fails),
        3 => (0..8usize, how).prop_map(|(n, how)| Step::Goes(n, how)),
        1 => (0..8usize).prop_map(Step::Comes),
        3 => (0..400u32).prop_map(Step::Wait),
    ]
}

proptest! {
    #[test]
    fn there_are_never_more_than_slots_and_the_counts_are_right(
        most in 1..5usize,
        steps in prop::collection::vec(step(), 1..200),
    ) {
        let mut rules = Rules::new(most, PATIENCE);
        let mut now = at(0.0);
        // Launches in flight, those given up whose daemons may come, and daemons.
        let (mut flying, mut late, mut there) = (vec![], vec![], vec![]);
        let mut last: PeerId = 0;
        for step in steps {
            match step {
                Step::Ask(unserved) => {
                    let before = flying.len();
                    let launches = rules.ask(now, unserved);
                    prop_assert!(launches.len() <= unserved.saturating_sub(before));
                    if rules.deadline().is_none() && !rules.has_stopped() {
                        let room = most.saturating_sub(before + there.len());
                        prop_assert_eq!(launches.len(), unserved.saturating_sub(before).min(room));
                    }
                    flying.extend(launches);
                }
                Step::Connects(n) if !flying.is_empty() => {
                    let launch: Launch = flying.remove(n % flying.len());
                    last += 1;
                    prop_assert!(!rules.is_too_late(launch.slot));
                    prop_assert_eq!(joins(&mut rules, launch.slot, last), Some(launch.id));
                    there.push((launch.slot, last));
                }
                Step::Comes(n) if !late.is_empty() => {
                    let launch: Launch = late.remove(n % late.len());
                    last += 1;
                    if !rules.is_too_late(launch.slot) {
                        // In place of another, which may still come.
                        if let Some(id) = joins(&mut rules, launch.slot, last) {
                            let at = flying.iter().position(|l| l.id == id).unwrap();
                            late.push(flying.remove(at));
                        }
                        there.push((launch.slot, last));
                    }
                }
                Step::Fails(n) if !flying.is_empty() => {
                    let launch: Launch = flying.remove(n % flying.len());
                    prop_assert!(rules.failed(now, launch.id).is_some());
                    prop_assert!(rules.failed(now, launch.id).is_none());
                }
                Step::Goes(n, how) if !there.is_empty() => {
                    let (slot, peer) = there.remove(n % there.len());
                    rules.gone(now, slot, peer, how);
                }
                Step::Wait(seconds) => {
                    now += Duration::from_secs(seconds.into());
                    let (given_up, _) = rules.tick(now);
                    for id in given_up {
                        let at = flying.iter().position(|l| l.id == id).unwrap();
                        late.push(flying.remove(at));
                    }
                    prop_assert!(rules.deadline().is_none_or(|due| due > now || rules.pausing));
                }
                _ => {}
            }
            prop_assert_eq!(rules.in_flight, flying.len());
            prop_assert_eq!(rules.daemons + rules.others.len(), there.len());
            prop_assert!(rules.in_flight + rules.daemons <= most);
            prop_assert!(rules.alive() <= most);
        }
    }
}
