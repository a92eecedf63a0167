package metrics

import (
	"context"
	"errors"
	"net"
	"net/http"

	"attentive.internal/pkg/fault"
)

// Outcome is how a job ended.
type Outcome string

// Outcomes of jobs.
const (
	Succeeded    Outcome = "succeeded"
	DeadLettered Outcome = "dead_lettered"
	Cancelled    Outcome = "cancelled"
)

// outcomes lists every outcome.
func outcomes() []Outcome { return []Outcome{Succeeded, DeadLettered, Cancelled} }

// Stage is how far a row or a profile came.
type Stage string

// Stages of rows.
const (
	// Read rows were decoded from a source, or profiles taken from the queue.
	Read Stage = "read"
	// Rejected rows cannot be sent; their reasons are in the rejects object.
	Rejected Stage = "rejected"
	// Duplicate rows name somebody who is in the segment already.
	Duplicate Stage = "duplicate"
	// Sent rows are published, or stored as profiles; sent profiles are those
	// whose call was answered with success.
	Sent Stage = "sent"
)

// stages lists every stage of rows.
func stages() []Stage { return []Stage{Read, Rejected, Duplicate, Sent} }

// ByteStage is where in the pipeline bytes are counted.
type ByteStage string

// Stages of bytes.
const (
	// Plain bytes are encoded and neither compressed nor encrypted.
	Plain ByteStage = "plain"
	// Uploaded bytes are those on the wire.
	Uploaded ByteStage = "uploaded"
)

// byteStages lists every stage of bytes.
func byteStages() []ByteStage { return []ByteStage{Plain, Uploaded} }

// Endpoint is a call of Attentive's API that has its own rate limit.
type Endpoint string

// Endpoints of the API.
const (
	CustomAttributes Endpoint = "custom_attributes" // POST /v1/attributes/custom
	BulkAttributes   Endpoint = "bulk_attributes"   // POST /v2/bulk/user/attributes
	BulkStatus       Endpoint = "bulk_status"       // GET /v2/bulk/job/{id}
	Subscribe        Endpoint = "subscribe"         // POST /v1/subscriptions
	Unsubscribe      Endpoint = "unsubscribe"       // POST /v1/subscriptions/unsubscribe
	Subscriptions    Endpoint = "subscriptions"     // GET /v1/subscriptions
	Me               Endpoint = "me"                // GET /v1/me
)

// endpoints lists every endpoint.
func endpoints() []Endpoint {
	return []Endpoint{CustomAttributes, BulkAttributes, BulkStatus, Subscribe, Unsubscribe, Subscriptions, Me}
}

// Code is the answer to a call: a status that we treat in its own way, the
// family of any other, or what went wrong before an answer came.
type Code string

// Codes that are no status.
const (
	Timeout Code = "timeout"
	Network Code = "network"
)

// codes lists every code.
func codes() []Code {
	return []Code{
		"1xx", "2xx", "3xx", "400", "401", "403", "404", "408", "409", "413", "422", "429", "4xx", "5xx",
		Timeout, Network,
	}
}

// CodeOf returns the code of a call that was answered with status, or that
// ended with err before it was answered. A status that HTTP does not know is
// counted as Network.
func CodeOf(status int, err error) Code {
	if err != nil {
		netErr, ok := errors.AsType[net.Error](err)
		if errors.Is(err, context.DeadlineExceeded) || ok && netErr.Timeout() {
			return Timeout
		}
		return Network
	}
	switch status {
	case http.StatusBadRequest:
		return "400"
	case http.StatusUnauthorized:
		return "401"
	case http.StatusForbidden:
		return "403"
	case http.StatusNotFound:
		return "404"
	case http.StatusRequestTimeout:
		return "408"
	case http.StatusConflict:
		return "409"
	case http.StatusRequestEntityTooLarge:
		return "413"
	case http.StatusUnprocessableEntity:
		return "422"
	case http.StatusTooManyRequests:
		return "429"
	}
	switch status / 100 {
	case 1:
		return "1xx"
	case 2:
		return "2xx"
	case 3:
		return "3xx"
	case 4:
		return "4xx"
	case 5:
		return "5xx"
	}
	return Network
}

// Cause is why a profile was acknowledged without a call of its own.
type Cause string

// Causes of skips.
const (
	// Superseded means a newer operation of that person was accepted.
	Superseded Cause = "superseded"
	// Unchanged means the same operation was accepted before.
	Unchanged Cause = "unchanged"
	// JobCancelled profiles were in a worker's hands when their job was cancelled.
	JobCancelled Cause = "cancelled"
)

// causes lists every cause.
func causes() []Cause { return []Cause{Superseded, Unchanged, JobCancelled} }

// done is the class of an attempt that succeeded.
const done = "done"

// classes lists the values of the label class: done, or the class of a failure.
func classes() []string {
	list := []string{done}
	for _, c := range fault.Classes() {
		list = append(list, c.String())
	}
	return list
}

// classOf returns the value of the label class of an attempt that ended with err.
func classOf(err error) string {
	if err == nil {
		return done
	}
	return fault.ClassOf(err).String()
}
