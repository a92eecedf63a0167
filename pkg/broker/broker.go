// Package broker names everything that is kept in JetStream, connects to it,
// and creates it or explains how it differs.
//
// It promises that what two processes mean by a stream, a bucket or a consumer
// is the same thing, and that a full queue refuses the publisher instead of
// dropping old work: the work queues discard new messages, never old ones. Only
// the stream of events forgets.
//
// Sequences order what people notice: which of two updates, of two jobs for one
// segment, of subscribe and unsubscribe is the newer. They never begin anew. A
// stream that is deleted and made again by [Conn.Ensure] begins at the clock, in
// microseconds; whoever makes a stream by other means sets first_seq so.
//
// A connection made here never gives up on its own. What a subscriber must do
// when it was lost and came back is the business of package queue; [Conn.Lost]
// tells when.
//
// Sizes: a work stream refuses messages above [contract.MaxMessageBytes],
// headers included, so that the dead letter made of one, with its own headers
// on top, still fits under the broker's default limit of 1 MiB.
package broker

import (
	"strings"

	"attentive.internal/pkg/contract"
)

// Streams.
const (
	// StreamJobs is the work queue of segment and attributes jobs.
	StreamJobs = "ATTENTIVE_JOBS"
	// StreamProfiles is the work queue of profiles, and keeps the checkpoints
	// of expansions, so that both are written in one atomic batch.
	StreamProfiles = "ATTENTIVE_PROFILES"
	// StreamDead keeps dead letters until an operator replays or discards them.
	StreamDead = "ATTENTIVE_DEAD"
	// StreamEvents keeps what happened to each job, for upstream.
	StreamEvents = "ATTENTIVE_EVENTS"
	// StreamActions keeps what operators have done, for a year.
	StreamActions = "ATTENTIVE_ACTIONS"
)

// Key-value buckets.
const (
	// BucketOwners holds the leases of accounts and destinations.
	BucketOwners = "attentive_owners"
	// BucketLedger holds the state of each job.
	BucketLedger = "attentive_ledger"
	// BucketConsent holds what was last sent of each person's consent.
	BucketConsent = "attentive_consent"
	// BucketBatches holds the batches that the API has accepted and not completed.
	BucketBatches = "attentive_batches"
	// BucketFiles holds file numbers and published files.
	BucketFiles = "attentive_files"
	// BucketPauses holds which destinations an operator has paused.
	BucketPauses = "attentive_pauses"
)

// Object stores.
const (
	// ObjectsAudiences holds audiences that jobs name as their source.
	ObjectsAudiences = "attentive_audiences"
	// ObjectsRejects holds rows that could not be used.
	ObjectsRejects = "attentive_rejects"
)

// StreamOf returns the stream that carries messages of kind k.
func StreamOf(k contract.Kind) string {
	if k.Job() {
		return StreamJobs
	}
	return StreamProfiles
}

// ConsumerName returns the name of the durable consumer of k and destination.
// Names of different pairs differ: no kind contains a hyphen.
func ConsumerName(k contract.Kind, destination string) string {
	return string(k) + "-" + destination
}

// ParseConsumerName returns the kind and destination that a consumer is named
// after; ok is false for names that [ConsumerName] does not make.
func ParseConsumerName(name string) (k contract.Kind, destination string, ok bool) {
	kind, destination, _ := strings.Cut(name, "-")
	a := contract.Address{Kind: contract.Kind(kind), Destination: destination}
	return a.Kind, a.Destination, a.Workable()
}
