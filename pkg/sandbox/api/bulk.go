package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	// maxBulkUsers is the most rows of a batch.
	maxBulkUsers = 256
	// maxBulkBytes is the longest body of a batch that is read.
	maxBulkBytes = 4 << 20
	// keptJobs is how many of the newest batches can be asked for.
	keptJobs = 1000
	// bulkPath and resultPath are followed by the id of a batch.
	bulkPath   = "/v2/bulk/job/"
	resultPath = "/v2/bulk/result/"
)

// JobStatus is where a batch stands.
type JobStatus string

// Statuses of a batch. Attentive publishes the middle two, the others are seen in
// its documentation.
const (
	JobPending     JobStatus = "PENDING"
	JobInProgress  JobStatus = "IN_PROGRESS"
	JobCompleted   JobStatus = "COMPLETED"
	JobNeedsReview JobStatus = "NEEDS_REVIEW"
	JobFailed      JobStatus = "FAILED"
	JobCancelled   JobStatus = "CANCELLED"
)

// BulkPolicy is what becomes of the batches that are accepted from now on.
type BulkPolicy struct {
	// Delay passes before a batch takes effect. Zero: at once.
	Delay Duration `json:"delay"`
	// Spread is what Delay is longer by at most, for each batch by another part of
	// it, from the server's seed: batches take effect in another order than they
	// were accepted in.
	Spread Duration `json:"spread,omitempty"`
	// Status, if not empty, is where a batch stays after Delay, without effect.
	Status JobStatus `json:"status,omitempty"`
	// NoResults leaves the url of a completed batch out.
	NoResults bool `json:"no_results,omitempty"`
}

// defaultBulkPolicy lets a batch be seen in progress.
func defaultBulkPolicy() BulkPolicy { return BulkPolicy{Delay: Duration(time.Second)} }

func (p BulkPolicy) validate() error {
	switch p.Status {
	case "", JobPending, JobInProgress, JobCompleted, JobNeedsReview, JobFailed, JobCancelled:
	default:
		return fmt.Errorf("bulk: no status %q", p.Status)
	}
	if p.Delay < 0 || p.Spread < 0 {
		return fmt.Errorf("bulk: delay %v or spread %v is negative", time.Duration(p.Delay), time.Duration(p.Spread))
	}
	return nil
}

// SetBulk changes what becomes of the batches that are accepted from now on.
func (s *Server) SetBulk(p BulkPolicy) error {
	if err := p.validate(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bulk.policy = p
	return nil
}

// User is a row of a batch.
type User struct {
	Who        []Identity        `json:"who"`
	Attributes map[string]string `json:"attributes"`
}

// bulkUser is a row as it was read.
type bulkUser struct {
	raw        json.RawMessage
	who        []Identity
	attributes []scalar
}

// bulkState is what is known of batches. Server.mu guards it.
type bulkState struct {
	policy BulkPolicy
	random *rand.Rand
	last   int
	jobs   map[string]*bulkJob
	order  []string // ids, oldest first
}

type bulkJob struct {
	id        string
	arrival   uint64 // its number
	status    JobStatus
	users     []bulkUser
	noResults bool
	problems  []answer // of each row, when it is completed
}

// bulkAttributes reads UserAttributes.
func (s *strict) bulkAttributes(body []byte) request {
	var q request
	fields := s.body(body, "users")
	raw, ok := fields["users"]
	if !ok {
		if fields != nil {
			s.fail("users", "is required")
		}
		return q
	}
	users := s.list("users", raw)
	if len(users) < 1 || len(users) > maxBulkUsers {
		s.fail("users", "must have 1 to %d elements", maxBulkUsers)
		return q
	}
	for i, raw := range users {
		row := &strict{}
		u := row.bulkUser(raw)
		q.users = append(q.users, u)
		q.who = append(q.who, u.who...)
		for _, p := range row.problems {
			s.problems = append(s.problems, fmt.Sprintf("users[%d].%s", i, p))
		}
	}
	return q
}

// bulkUser reads CreateUserAttributesRequestDtoV21, but for subscriptions.
func (s *strict) bulkUser(raw json.RawMessage) bulkUser {
	u := bulkUser{raw: raw}
	if len(raw) > maxBodyBytes {
		s.fail("body", "is longer than 1 MiB")
		return u
	}
	fields := s.object("user", raw, "attributes", "identifiers")
	if ids, ok := fields["identifiers"]; ok {
		u.who = s.identifiers(ids)
	}
	if len(u.who) == 0 {
		s.fail("identifiers", "at least one is required")
	}
	if attributes, ok := fields["attributes"]; ok {
		known := s.object("attributes", attributes, "firstName", "lastName", "demographic", "location", "locale", "custom")
		for _, name := range []string{"firstName", "lastName"} {
			if raw, ok := known[name]; ok {
				s.text("attributes."+name, raw)
			}
		}
		for _, name := range []string{"demographic", "location", "locale"} {
			if raw, ok := known[name]; ok {
				s.object("attributes."+name, raw)
			}
		}
		if raw, ok := known["custom"]; ok {
			u.attributes = s.properties("attributes.custom", raw)
		}
	}
	return u
}

// identifiers reads those of a row: all of them flat, custom ones as key and value.
func (s *strict) identifiers(raw json.RawMessage) []Identity {
	fields := s.object("identifiers", raw, "email", "phone", "shopifyId", "klaviyoId", "clientUserId", "customIdentifiers")
	var who []Identity
	if raw, ok := fields["phone"]; ok {
		phone := s.text("identifiers.phone", raw)
		s.phone("identifiers.phone", phone)
		who = append(who, Identity{phoneKind, phone})
	}
	if raw, ok := fields["email"]; ok {
		email := s.text("identifiers.email", raw)
		s.email("identifiers.email", email)
		who = append(who, Identity{emailKind, strings.ToLower(email)})
	}
	for _, single := range []struct{ name, kind string }{
		{"clientUserId", "client_user_id"}, {"shopifyId", "shopify_id"}, {"klaviyoId", "klaviyo_id"},
	} {
		if raw, ok := fields[single.name]; ok {
			who = append(who, Identity{single.kind, s.text("identifiers."+single.name, raw)})
		}
	}
	if raw, ok := fields["customIdentifiers"]; ok {
		for i, element := range s.list("identifiers.customIdentifiers", raw) {
			at := fmt.Sprintf("identifiers.customIdentifiers[%d]", i)
			pair := s.object(at, element, "key", "value")
			who = append(who, Identity{customKind + s.required(at+".key", pair["key"]), s.required(at+".value", pair["value"])})
		}
	}
	return who
}

// acceptBulk takes a checked batch. Server.mu is held.
func (s *Server) acceptBulk(q request) answer {
	s.bulk.last++
	job := &bulkJob{
		id: fmt.Sprintf("batch-%d-%d", s.started.UnixMilli(), s.bulk.last), arrival: q.arrival, status: JobInProgress, users: q.users,
		noResults: s.bulk.policy.NoResults,
	}
	s.arrivals.note(job.arrival, func(a *Arrival) { a.Job = job.id })
	s.bulk.jobs[job.id] = job
	s.bulk.order = append(s.bulk.order, job.id)
	if len(s.bulk.order) > keptJobs {
		delete(s.bulk.jobs, s.bulk.order[0])
		s.bulk.order = slices.Delete(s.bulk.order, 0, 1)
	}
	end := s.bulk.policy.Status
	if delay := s.bulk.delay(); delay > 0 {
		time.AfterFunc(delay, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			select {
			case <-s.stopping:
			default:
				s.endBulk(job, end)
			}
		})
	} else {
		s.endBulk(job, end)
	}
	return answer{status: http.StatusAccepted, body: map[string]string{
		"message": "Bulk job accepted", "batchJobId": job.id,
	}, executed: true}
}

// delay returns how long the next batch takes. Server.mu is held.
func (b *bulkState) delay() time.Duration {
	delay := time.Duration(b.policy.Delay)
	if spread := int64(b.policy.Spread); spread > 0 {
		delay += time.Duration(b.random.Int64N(spread))
	}
	return delay
}

// endBulk lets a batch take effect, or stay where the policy says. Server.mu is
// held.
func (s *Server) endBulk(job *bulkJob, status JobStatus) {
	if status != "" && status != JobCompleted {
		job.status = status
		return
	}
	for _, u := range job.users {
		a := s.setAttributes(request{who: u.who, attributes: u.attributes})
		if a.status/100 == 2 {
			a = answer{status: a.status}
		}
		job.problems = append(job.problems, a)
	}
	job.status = JobCompleted
	s.arrivals.note(job.arrival, func(a *Arrival) { a.Applied = time.Now() })
}

// bulkStatus answers what became of a batch. Server.mu is held.
func (s *Server) bulkStatus(q request) answer {
	job := s.bulk.jobs[q.job]
	if job == nil {
		return problem(http.StatusNotFound, "The specified resource was not found")
	}
	body := map[string]any{"bulkJobId": job.id, "status": job.status, "totalRecords": len(job.users)}
	if job.status == JobCompleted && !job.noResults {
		body["url"] = q.base + resultPath + job.id + ".jsonl"
	}
	return answer{status: http.StatusOK, body: body}
}

// serveResult answers with the results of a batch, a line a row: what was asked
// for, and what it was answered.
func (s *Server) serveResult(w http.ResponseWriter, id string) {
	s.mu.Lock()
	job := s.bulk.jobs[id]
	if job == nil || job.status != JobCompleted {
		s.mu.Unlock()
		write(w, problem(http.StatusNotFound, "The specified resource was not found"))
		return
	}
	var b bytes.Buffer
	lines := json.NewEncoder(&b)
	for i, u := range job.users {
		response := map[string]any{"status": job.problems[i].status}
		if refused, ok := job.problems[i].body.(map[string]any); ok {
			response["message"] = refused["message"]
		}
		_ = lines.Encode(map[string]any{"request": u.raw, "response": response}) // both were JSON before
	}
	s.mu.Unlock()
	w.Header().Set("Content-Type", "application/jsonl")
	w.Header().Set("Content-Length", strconv.Itoa(b.Len()))
	_, _ = w.Write(b.Bytes()) // a client that is gone is no failure
}

// users returns the rows of a batch for the log of arrivals.
func users(rows []bulkUser) []User {
	var list []User
	for _, u := range rows {
		list = append(list, User{Who: u.who, Attributes: texts(u.attributes)})
	}
	return list
}
