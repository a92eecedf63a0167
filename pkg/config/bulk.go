package config

import (
	"fmt"
	"time"
)

// APIMode is which of the API's two ways attributes are sent by.
type APIMode string

// The modes of the API.
const (
	// Custom sends one profile a call: POST /v1/attributes/custom.
	Custom APIMode = "custom"
	// BulkMode sends up to 256 profiles a call: POST /v2/bulk/user/attributes.
	BulkMode APIMode = "bulk"
)

// Bulk says how attributes are sent in batches.
type Bulk struct {
	// Confirm keeps each batch until the API has told what became of each of its
	// rows, and dead-letters those that failed. Default false.
	Confirm bool
	// FillWait is how long the first profile of a batch that is not full waits for
	// others. Default 100 ms, from 1 ms to 1 minute.
	FillWait time.Duration
	// CompleteWithin is how long the API may take to complete a batch, before its
	// outcome counts as unknown. Default 1 hour, from 1 second to 14 days.
	CompleteWithin time.Duration
}

var defaultBulk = Bulk{FillWait: 100 * time.Millisecond, CompleteWithin: time.Hour}

// ChangedStore is where it is remembered what was sent.
type ChangedStore string

// The places to remember in.
const (
	InMemory ChangedStore = "memory"
	OnDisk   ChangedStore = "disk"
)

// OnlyChanged says how much is remembered of the attributes that were sent, so
// that they are not sent again.
type OnlyChanged struct {
	// Entries is the most identifiers of subscribers that are remembered. Default
	// 1,000,000, from 1,000 to 1,000,000,000.
	Entries int
	// MaxAge is after how long the same attributes are sent again. Default 7 days,
	// from 1 second to 365 days.
	MaxAge time.Duration
	// Store is where they are remembered: default InMemory.
	Store ChangedStore
}

// readBulk reads the keys that say how attributes reach the API.
func readBulk(m *mapping, s *AttributesSettings) {
	s.APIMode = get(m, "api_mode", Custom, choice(Custom, BulkMode))
	s.Bulk = get(m, "bulk", defaultBulk, func(v value) Bulk {
		m := v.mapping()
		b := Bulk{
			Confirm:        get(m, "confirm", defaultBulk.Confirm, boolean),
			FillWait:       get(m, "fill_wait", defaultBulk.FillWait, duration(time.Millisecond, time.Minute)),
			CompleteWithin: get(m, "complete_within", defaultBulk.CompleteWithin, duration(time.Second, 14*24*time.Hour)),
		}
		m.done()
		return b
	})
	if v, ok := m.lookup("bulk"); ok && s.APIMode == Custom {
		v.fault("is there without api_mode: bulk", "add api_mode: bulk, or remove it")
	}
	s.OnlyChanged = get(m, "only_changed", nil, readOnlyChanged)
	if v, ok := m.lookup("only_changed"); ok && s.APIMode == BulkMode && !s.Bulk.Confirm {
		v.fault(fmt.Sprintf("is there with api_mode: %s, which does not tell what was applied", BulkMode), "add bulk: {confirm: true}, or remove it")
	}
}

func readOnlyChanged(v value) *OnlyChanged {
	m := v.mapping()
	o := &OnlyChanged{
		Entries: get(m, "entries", 1_000_000, whole(1000, 1_000_000_000)),
		MaxAge:  get(m, "max_age", 7*24*time.Hour, duration(time.Second, 365*24*time.Hour)),
		Store:   get(m, "store", InMemory, choice(InMemory, OnDisk)),
	}
	m.done()
	return o
}
