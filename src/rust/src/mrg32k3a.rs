//! Streams of the random number generator MRG32k3a, which R calls L'Ecuyer-CMRG, as R's package parallel has them.
//!
//! Facts: P. L'Ecuyer, R. Simard, E. J. Chen, W. D. Kelton (2002), "An
//! object-oriented random-number package with many long streams and substreams",
//! Operations Research 50(6); R's documentation of `RNGkind()` and
//! `parallel::nextRNGStream()`. Streams are 2^127 steps apart, their substreams 2^76.

use mirai_core::protocol::Stream;
use mirai_core::sys;

const M1: u64 = 4_294_967_087;
const M2: u64 = 4_294_944_443;

type Matrix = [[u64; 3]; 3];

/// One step of each component, as a matrix.
const A1: Matrix = [[0, 1, 0], [0, 0, 1], [M1 - 810_728, 1_403_580, 0]];
const A2: Matrix = [[0, 1, 0], [0, 0, 1], [M2 - 1_370_589, 0, 527_612]];

const fn multiply(a: Matrix, b: Matrix, m: u64) -> Matrix {
    let mut out = [[0; 3]; 3];
    let mut i = 0;
    while i < 3 {
        let mut j = 0;
        while j < 3 {
            let mut k = 0;
            while k < 3 {
                out[i][j] = (out[i][j] + a[i][k] * b[k][j] % m) % m;
                k += 1;
            }
            j += 1;
        }
        i += 1;
    }
    out
}

/// `a` to the power of 2^`doublings`, modulo `m`, by squaring.
const fn jump(a: Matrix, m: u64, doublings: u32) -> Matrix {
    let mut out = a;
    let mut i = 0;
    while i < doublings {
        out = multiply(out, out, m);
        i += 1;
    }
    out
}

/// From stream to stream, from part to part, and from substream to substream.
const JUMPS: [Matrix; 2] = [jump(A1, M1, 127), jump(A2, M2, 127)];
const PART_JUMPS: [Matrix; 2] = [jump(A1, M1, 112), jump(A2, M2, 112)];
const SMALL_JUMPS: [Matrix; 2] = [jump(A1, M1, 76), jump(A2, M2, 76)];

fn apply(a: &Matrix, seed: [i32; 3], m: u64) -> [i32; 3] {
    // R stores unsigned components in its signed integers.
    let s = seed.map(|x| u64::from(x as u32));
    let row = |r: &[u64; 3]| (r[0] * s[0] % m + r[1] * s[1] % m + r[2] * s[2] % m) % m;
    [row(&a[0]), row(&a[1]), row(&a[2])].map(|x| x as u32 as i32)
}

fn leap(stream: Stream, jumps: &[Matrix; 2]) -> Stream {
    let [a, b, c, d, e, f] = stream;
    let [a, b, c] = apply(&jumps[0], [a, b, c], M1);
    let [d, e, f] = apply(&jumps[1], [d, e, f], M2);
    [a, b, c, d, e, f]
}

/// The stream after this one.
pub(crate) fn next(stream: Stream) -> Stream {
    leap(stream, &JUMPS)
}

/// The part after this one, of 2^112 steps: a stream has 2^15 of them. They are for daemons that follow one another.
pub(crate) fn next_part(stream: Stream) -> Stream {
    leap(stream, &PART_JUMPS)
}

/// The substream after this one: 2^76 steps on, in the same stream. A part has 2^36 of them. They are for the tasks of a
/// daemon.
pub(crate) fn next_substream(stream: Stream) -> Stream {
    leap(stream, &SMALL_JUMPS)
}

/// Whether `now` is the state after `before` and up to `most` draws.
pub(crate) fn is_soon_after(now: Stream, before: Stream, most: u32) -> bool {
    let now = now.map(|n| i64::from(n as u32));
    let mut state = before.map(|n| i64::from(n as u32));
    for _ in 0..most {
        let [a, b, c, d, e, f] = state;
        let first = (1_403_580 * b - 810_728 * a).rem_euclid(M1 as i64);
        let second = (527_612 * f - 1_370_589 * d).rem_euclid(M2 as i64);
        state = [b, c, first, e, f, second];
        if state == now {
            return true;
        }
    }
    false
}

/// The stream that R's `set.seed(seed, kind = "L'Ecuyer-CMRG")` begins with.
pub(crate) fn from_seed(seed: i32) -> Stream {
    let mut x = seed as u32;
    let mut step = || {
        x = x.wrapping_mul(69069).wrapping_add(1);
        x
    };
    // R first scrambles the user's seed, then draws the six components.
    for _ in 0..50 {
        step();
    }
    std::array::from_fn(|_| loop {
        let seed = step();
        if u64::from(seed) < M2 {
            break seed as i32;
        }
    })
}

/// A stream from the operating system's random numbers.
pub(crate) fn from_entropy() -> Stream {
    std::array::from_fn(|_| {
        loop {
            let mut bytes = [0; 4];
            sys::random(&mut bytes);
            let seed = u32::from_ne_bytes(bytes);
            // Below both moduli (M2 is the smaller one), and not zero: three zeros in a row are no state.
            if seed != 0 && u64::from(seed) < M2 {
                break seed as i32;
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    // From R 4.2.2: RNGkind("L'Ecuyer-CMRG"); set.seed(42); .Random.seed[-1], and
    // parallel::nextRNGStream() of it, twice.
    #[test]
    fn streams_are_those_of_r() {
        let first = from_seed(42);
        assert_eq!(first, SEED_42);
        assert_eq!(next(first), NEXT_42);
        assert_eq!(next(next(first)), NEXT_NEXT_42);
        // And of parallel::nextRNGSubStream().
        let sub = next_substream(first);
        let expected = [
            -1871565002,
            1968597656,
            -505666782,
            1055078269,
            658163990,
            1090264187,
        ];
        assert_eq!(sub, expected);
        assert_eq!(next_substream(sub)[5], -1226578877);
        let all = (0..1 << 15).fold(first, |part, _| next_part(part));
        assert_eq!(all, NEXT_42);
    }

    #[test]
    fn draws_are_steps() {
        let step = [A1, A2];
        let third = (0..3).fold(SEED_42, |state, _| leap(state, &step));
        assert!(is_soon_after(third, SEED_42, 3));
        assert!(!is_soon_after(third, SEED_42, 2));
        assert!(!is_soon_after(SEED_42, SEED_42, 1000));
        assert!(!is_soon_after(NEXT_42, SEED_42, 1000));
        // From R 4.2.2: runif(1), and .Random.seed[-1] again.
        let first = [
            507561766,
            1260545903,
            1428141413,
            -1772566379,
            -1344458670,
            681480349,
        ];
        assert!(is_soon_after(first, SEED_42, 1));
    }

    const SEED_42: Stream = [
        -2133391687,
        507561766,
        1260545903,
        1362917092,
        -1772566379,
        -1344458670,
    ];
    const NEXT_42: Stream = [
        -94575036,
        -24861725,
        357812871,
        346211554,
        -1301022835,
        440649733,
    ];
    const NEXT_NEXT_42: Stream = [
        -358246211,
        -1411857254,
        -488221791,
        1069515918,
        -1720689715,
        1070199760,
    ];

    #[test]
    fn random_streams_differ() {
        assert_ne!(from_entropy(), from_entropy());
    }
}
