package broker

import (
	"cmp"
	"context"
	"maps"
	"strconv"
	"strings"
	"time"

	"attentive.internal/pkg/contract"
	"github.com/google/uuid"
	"github.com/nats-io/nats.go/jetstream"
)

// Settings are the sizes that depend on the installation. Zero values mean the
// defaults. The broker reserves the sums of the ceilings on its disk.
type Settings struct {
	// Replicas is how many servers keep each message, 1, 3 or 5. Default 1.
	Replicas int
	// JobsBytes is the ceiling of the queue of jobs. Default 1 GiB.
	JobsBytes int64
	// ProfilesBytes is the ceiling of the queue of profiles. Default 4 GiB,
	// some 10 million profiles.
	ProfilesBytes int64
	// DeadBytes is the ceiling of the dead letters. When it is reached,
	// messages stay in their queues. Default 1 GiB.
	DeadBytes int64
	// EventsBytes is where events begin to be forgotten. Default 256 MiB.
	EventsBytes int64
	// RejectsAge is how long rows are kept that could not be sent. Default 30 days.
	RejectsAge time.Duration
	// ActionsAge is how long it is kept what operators did. Default a year.
	ActionsAge time.Duration
	// EventsAge is how long events are kept. Default 30 days.
	EventsAge time.Duration
}

func (s Settings) withDefaults() Settings {
	orDefault := func(n *int64, value int64) {
		if *n == 0 {
			*n = value
		}
	}
	s.Replicas = max(s.Replicas, 1)
	s.RejectsAge, s.ActionsAge = cmp.Or(s.RejectsAge, rejectsAge), cmp.Or(s.ActionsAge, actionsAge)
	s.EventsAge = cmp.Or(s.EventsAge, eventsAge)
	orDefault(&s.JobsBytes, 1<<30)
	orDefault(&s.ProfilesBytes, 4<<30)
	orDefault(&s.DeadBytes, 1<<30)
	orDefault(&s.EventsBytes, 256<<20)
	return s
}

const (
	// MaxDeadBytes is the most that a dead letter may have, headers included:
	// the largest message plus 64 KiB for what is known of its failure, which
	// is also the most that JetStream takes as headers of one message. It
	// stays below the broker's default max_payload of 1 MiB, by which every
	// publish is measured.
	MaxDeadBytes = contract.MaxMessageBytes + 64<<10

	// jobsWindow lets a publisher repeat a job for a day, profilesWindow only
	// its own retries: the broker keeps the ids in memory.
	jobsWindow     = 24 * time.Hour
	profilesWindow = 2 * time.Minute
	eventsAge      = 30 * 24 * time.Hour
	rejectsAge     = 30 * 24 * time.Hour
	actionsAge     = 365 * 24 * time.Hour
	// batchesAge ends what is kept of batches whose destination nobody works any
	// more: of those that are worked it is over after 14 days at the most.
	batchesAge   = 90 * 24 * time.Hour
	actionsBytes = 64 << 20

	// maxConsumers must be positive: since 2.15 a server allows 1000 consumers
	// a stream unless the stream itself names another number.
	maxConsumers = 100_000
)

// asset is one thing kept in JetStream: a stream, or a bucket or object store
// with its backing stream.
type asset struct {
	noun, name string
	// want holds the properties that matter; in a bucket or an object store
	// the client library decides the others.
	want jetstream.StreamConfig
	// ordered is that sequences tell what is newer, also from what was deleted.
	ordered bool
	create  func(context.Context, jetstream.JetStream) error
}

// assets lists everything, in the order of creation.
func assets(s Settings) []asset {
	s = s.withDefaults()
	list := streams(s)
	return append(list,
		// Leases never expire in the broker. What expires are the marks of
		// replicas that have gone.
		bucket(jetstream.KeyValueConfig{
			Bucket: BucketOwners, Description: "leases of accounts and destinations", Replicas: s.Replicas, LimitMarkerTTL: time.Hour,
		}),
		bucket(jetstream.KeyValueConfig{Bucket: BucketLedger, Description: "state of each job", Replicas: s.Replicas}),
		bucket(jetstream.KeyValueConfig{
			Bucket: BucketConsent, Description: "what was last sent of each person's consent", Replicas: s.Replicas,
		}),
		bucket(jetstream.KeyValueConfig{
			Bucket: BucketBatches, Description: "batches that the API has accepted and not completed", Replicas: s.Replicas,
			TTL: batchesAge, LimitMarkerTTL: time.Minute, // a hundred a second may be removed
		}),
		bucket(jetstream.KeyValueConfig{Bucket: BucketFiles, Description: "file numbers and published files", Replicas: s.Replicas}),
		bucket(jetstream.KeyValueConfig{Bucket: BucketPauses, Description: "destinations that an operator has paused", Replicas: s.Replicas}),
		objects(ObjectsAudiences, "audiences that jobs name as their source", s.Replicas, 0),
		objects(ObjectsRejects, "rows that could not be used", s.Replicas, s.RejectsAge),
	)
}

func streams(s Settings) []asset {
	workQueue := jetstream.StreamConfig{
		Retention:    jetstream.WorkQueuePolicy,
		Discard:      jetstream.DiscardNew,
		MaxMsgSize:   contract.MaxMessageBytes,
		MaxConsumers: maxConsumers,
	}
	jobs := workQueue
	jobs.Name = StreamJobs
	jobs.Description = "segment and attributes jobs that wait or are being worked"
	jobs.Subjects = []string{contract.JobSubject(contract.Segment, "*"), contract.JobSubject(contract.Expand, "*")}
	jobs.MaxBytes = s.JobsBytes
	jobs.Duplicates = jobsWindow

	profiles := workQueue
	profiles.Name = StreamProfiles
	profiles.Description = "profiles that wait or are being sent, and checkpoints of expansions"
	profiles.Subjects = []string{contract.ProfileSubject("*", "*", "*"), contract.CheckpointSubject("*", "*")}
	profiles.MaxBytes = s.ProfilesBytes
	profiles.Duplicates = profilesWindow
	profiles.AllowAtomicPublish = true

	kept := jetstream.StreamConfig{Retention: jetstream.LimitsPolicy, MaxConsumers: maxConsumers}
	dead := kept
	dead.Name = StreamDead
	dead.Description = "messages that trying again will not fix"
	dead.Subjects = []string{allJobs(contract.DeadSubject)}
	dead.Discard = jetstream.DiscardNew
	dead.MaxMsgSize = MaxDeadBytes
	dead.MaxBytes = s.DeadBytes
	dead.Duplicates = jobsWindow

	events := kept
	events.Name = StreamEvents
	events.Description = "what happened to each job"
	events.Subjects = []string{allJobs(contract.EventSubject)}
	events.Discard = jetstream.DiscardOld
	events.MaxMsgSize = contract.MaxMessageBytes
	events.MaxBytes = s.EventsBytes
	events.MaxAge = s.EventsAge
	events.Duplicates = jobsWindow

	actions := kept
	actions.Name = StreamActions
	actions.Description = "what operators have done"
	actions.Subjects = []string{contract.ActionSubject("*")}
	actions.Discard = jetstream.DiscardOld
	actions.MaxMsgSize = contract.MaxMessageBytes
	actions.MaxBytes = actionsBytes
	actions.MaxAge = s.ActionsAge
	actions.Duplicates = jobsWindow

	list := make([]asset, 0, 5)
	for _, cfg := range []jetstream.StreamConfig{jobs, profiles, dead, events, actions} {
		cfg.Storage = jetstream.FileStorage
		cfg.Replicas = s.Replicas
		ordered := cfg.Name != StreamDead // whose ids people type, and by which nothing is ordered
		list = append(list, asset{
			noun: "stream", name: cfg.Name, want: cfg, ordered: ordered,
			create: func(ctx context.Context, js jetstream.JetStream) error {
				cfg := cfg
				if ordered {
					cfg.MaxMsgSize = setupSize
					// Unlike that of anybody else: servers take the same request twice for one.
					cfg.Metadata = map[string]string{makerKey: uuid.NewString()}
				}
				_, err := js.CreateStream(ctx, cfg)
				return err
			},
		})
	}
	return list
}

// setupSize is the maximum message size of a stream that is being set up, in bytes: it
// takes no message of ours, which all have headers, before its first sequence is set.
// The configuration could name that sequence, but then a server that makes the stream
// over files which hold messages removes all that are older. Nor can its subjects wait:
// a server subscribes twice to what two processes add at once, and stores each message
// twice.
const setupSize = 1

// inSetup reports whether a stream with the configuration has no first sequence yet
// that is due to it.
func (a asset) inSetup(cfg *jetstream.StreamConfig) bool {
	return a.ordered && cfg.MaxMsgSize == setupSize
}

// firstSequence returns the sequence that the first message gets of a stream which
// was made at a time. Of two jobs or profiles the one with the higher sequence is
// newer, and readers of events go on after the sequence they have read, so those
// streams begin where the clock is: higher than one that was deleted ever came.
// Microseconds, because no queue takes a million messages a second for long, and
// because sequences stay below 2^53, which every reader of JSON can count to.
//
// All who ensure a stream at once take the same: that of the server.
func firstSequence(made time.Time) uint64 { return uint64(max(made.UnixMicro(), 1)) }

// Keys of a stream's metadata: who makes it, and the sequence it began with.
const (
	makerKey         = "attentive_maker"
	firstSequenceKey = "attentive_first_sequence"
)

// begin notes with which sequence a stream begins.
func begin(cfg *jetstream.StreamConfig, first uint64) {
	cfg.Metadata = maps.Clone(cfg.Metadata)
	if cfg.Metadata == nil {
		cfg.Metadata = make(map[string]string, 1)
	}
	cfg.Metadata[firstSequenceKey] = strconv.FormatUint(first, 10)
}

// BeganAfter reports whether the stream began, empty, after what has the sequence was
// stored in one of its name: that one was deleted. It is false where nothing is known
// of how the stream began, as of one that an earlier version has made.
func BeganAfter(info *jetstream.StreamInfo, sequence uint64) bool {
	first, err := strconv.ParseUint(info.Config.Metadata[firstSequenceKey], 10, 64)
	// A configuration that was copied says nothing of the stream that has it now.
	return err == nil && sequence < first && first <= info.State.FirstSeq
}

// allJobs returns the wildcard over kinds, destinations and jobs. The job is
// put in place afterwards because it is checked to be a job.
func allJobs(subject func(k contract.Kind, destination, job string) string) string {
	const job = "job"
	return strings.TrimSuffix(subject("*", "*", job), job) + "*"
}

func bucket(cfg jetstream.KeyValueConfig) asset {
	cfg.History, cfg.Storage = 1, jetstream.FileStorage
	return asset{
		noun: "bucket", name: cfg.Bucket,
		want: jetstream.StreamConfig{
			Name: "KV_" + cfg.Bucket, Subjects: []string{"$KV." + cfg.Bucket + ".>"},
			Storage: cfg.Storage, Replicas: cfg.Replicas, MaxMsgsPerSubject: 1, Discard: jetstream.DiscardNew,
			MaxAge: cfg.TTL, AllowMsgTTL: cfg.LimitMarkerTTL > 0,
		},
		create: func(ctx context.Context, js jetstream.JetStream) error {
			_, err := js.CreateKeyValue(ctx, cfg)
			return err
		},
	}
}

func objects(name, description string, replicas int, age time.Duration) asset {
	return asset{
		noun: "object store", name: name,
		want: jetstream.StreamConfig{
			Name: "OBJ_" + name, Subjects: []string{"$O." + name + ".C.>", "$O." + name + ".M.>"},
			Storage: jetstream.FileStorage, Replicas: replicas, MaxAge: age, Discard: jetstream.DiscardNew,
		},
		create: func(ctx context.Context, js jetstream.JetStream) error {
			_, err := js.CreateObjectStore(ctx, jetstream.ObjectStoreConfig{
				Bucket: name, Description: description, Storage: jetstream.FileStorage, Replicas: replicas, TTL: age,
			})
			return err
		},
	}
}
