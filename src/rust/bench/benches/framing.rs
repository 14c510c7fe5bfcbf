//! Laying messages into bytes and taking them out again.

use std::hint::black_box;
use std::mem::MaybeUninit;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use mirai_core::protocol::frame::encode_head;
use mirai_core::protocol::{Frame, FrameReader, Kind, Limits, ToDaemon};

const SIZES: [usize; 4] = [100, 10_000, 1_000_000, 100_000_000];

fn message() -> ToDaemon {
    ToDaemon::Task {
        seq: 12_345,
        kind: Kind::Task,
        stream: None,
        constants: None,
        granted: 12_345,
        attached: 0,
        number: 12_345,
    }
}

fn encode(c: &mut Criterion) {
    let body = Bytes::from_static(&[7; 100]);
    c.bench_function("encode a frame", |b| {
        b.iter(|| Frame::new(black_box(&message()), body.clone()));
    });
}

/// From memory, in reads as large as the reader allows.
fn decode(c: &mut Criterion) {
    let mut group = c.benchmark_group("decode a frame, by bytes of body");
    for size in SIZES {
        let mut bytes = encode_head(&message(), size).to_vec();
        bytes.resize(bytes.len() + size, 7);
        let mut reader = FrameReader::<ToDaemon>::new(Limits::LINK);
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.sample_size(if size > 1_000_000 { 10 } else { 100 });
        group.bench_function(BenchmarkId::from_parameter(size), |b| {
            b.iter(|| read(&mut reader, &bytes));
        });
    }
    group.finish();
}

fn read(reader: &mut FrameReader<ToDaemon>, mut bytes: &[u8]) -> Vec<u8> {
    loop {
        if let Some((_, body)) = reader.next().expect("a good frame") {
            return body;
        }
        reader
            .fill(|room| {
                let (now, later) = bytes.split_at(room.len().min(bytes.len()));
                // SAFETY: a type that may be uninitialised has the layout of the type.
                let now = unsafe { &*(std::ptr::from_ref(now) as *const [MaybeUninit<u8>]) };
                room[..now.len()].copy_from_slice(now);
                bytes = later;
                Ok(now.len())
            })
            .expect("memory can be read");
    }
}

criterion_group!(benches, encode, decode);
criterion_main!(benches);
