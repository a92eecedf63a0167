package broker

import (
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

func TestWhatIsMissedIsToldOf(t *testing.T) {
	t.Parallel()
	now := time.Now()
	before := now.Add(-time.Hour)
	found := func(name string, created time.Time) ensured {
		return ensured{name: name, info: &jetstream.StreamInfo{Created: created}}
	}
	made := func(name string, state jetstream.StreamState) ensured {
		return ensured{name: name, made: true, info: &jetstream.StreamInfo{Created: now, State: state}}
	}
	tests := []struct {
		name string
		all  []ensured
		want []string
	}{
		{"all is new", []ensured{made("jobs", jetstream.StreamState{}), made("ledger", jetstream.StreamState{})}, nil},
		{"another process makes it too", []ensured{made("jobs", jetstream.StreamState{}), found("ledger", now)}, nil},
		{"one of two is gone", []ensured{made("jobs", jetstream.StreamState{}), found("ledger", before)}, []string{"jobs"}},
		{"it is back", []ensured{made("jobs", jetstream.StreamState{Msgs: 1, FirstTime: before, LastTime: before}), found("ledger", before)}, nil},
		{"it is back, empty", []ensured{made("jobs", jetstream.StreamState{LastSeq: 7}), found("ledger", before)}, nil},
		{"set up at a second attempt", []ensured{made("jobs", jetstream.StreamState{LastSeq: firstSequence(now) - 1}), found("ledger", before)}, []string{"jobs"}},
		{"it is gone, and others store already", []ensured{
			made("jobs", jetstream.StreamState{Msgs: 1, FirstTime: now.Add(time.Second), LastTime: now.Add(time.Second)}), found("ledger", before),
		}, []string{"jobs"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if got := missed(tt.all); !slices.Equal(got, tt.want) {
				t.Errorf("missed = %v, want %v", got, tt.want)
			}
		})
	}
}
