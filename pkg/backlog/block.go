package backlog

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/owner"
)

// Block is a queue that stands still until its cause is gone.
type Block struct {
	Kind        contract.Kind `json:"kind"`
	Destination string        `json:"destination"`
	Scope       fault.Scope   `json:"scope"`
	Reason      fault.Reason  `json:"reason"`
	// Since is when it was first seen, some seconds after it began at most.
	Since time.Time `json:"since"`
}

// String says it to people.
func (b Block) String() string {
	return fmt.Sprintf("blocked since %s: %s (%s)", b.Since.UTC().Format(time.RFC3339), b.Reason, b.Scope)
}

// Blocks returns what the live replicas of all programs say that they wait for, the
// oldest first.
func Blocks(ctx context.Context, conn *broker.Conn) ([]Block, error) {
	kv, err := conn.KeyValue(ctx, broker.BucketOwners)
	if err != nil {
		return nil, err
	}
	var list []Block
	prefix := "$KV." + broker.BucketOwners + "."
	err = conn.Subjects(ctx, "KV_"+broker.BucketOwners, prefix+owner.Replicas, func(subject string, _ uint64) error {
		entry, err := kv.Get(ctx, strings.TrimPrefix(subject, prefix))
		if errors.Is(err, jetstream.ErrKeyNotFound) {
			return nil // it has stopped
		}
		if err != nil {
			return fmt.Errorf("read what a replica says of itself: %w", err)
		}
		var said struct {
			Lease  time.Duration `json:"lease"`
			Status []Block       `json:"status"`
		}
		// One of another version may say something else; one that is dead says nothing.
		if json.Unmarshal(entry.Value(), &said) == nil && time.Since(entry.Created()) < 2*said.Lease {
			list = append(list, said.Status...)
		}
		return nil
	})
	slices.SortFunc(list, func(a, b Block) int { return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.Kind, b.Kind)) })
	return list, err
}
